"""`graphsurgery export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from graphsurgery.cli.options import OPENING, SHOWN, Opening, Output, Shown, writable

if TYPE_CHECKING:
    from graphsurgery.cli.output import Output as Screen
    from graphsurgery.graph import ModelGraph


def export(
    model: str,
    /,
    *,
    output: Output,
    opset: Annotated[int | None, Parameter(validator=Number(gte=18))] = None,
    width: str | None = None,
    target: str | None = None,
    data: str | None = None,
    opening: Opening = OPENING,
    shown: Shown = SHOWN,
) -> None:
    """Write a network as one ONNX file with a free batch, compared with PyTorch on three batch sizes and timed.

    Parameters
    ----------
    model
        A checkpoint, a state_dict with --arch, or a model spec.
    opset
        Version of the operators, at least 18; by default the exporter's choice.
    width
        Of a slimmable network, the share of every space, or channels of single ones: conv1=8,conv2=16.
    target
        Of a slimmable network, the largest width that costs no more: macs=0.3x, params=1M, size=4MB, or timed in ONNX
        Runtime latency=5ms.
    data
        Of a slimmable network, what gives the statistics of a width that are not in its file.
    """
    writable(output)
    from dataclasses import asdict

    from graphsurgery.cli.output import Output as Screen
    from graphsurgery.cli.output import count
    from graphsurgery.recipes.delivery import deliver

    screen = Screen(shown)
    graph = opening.graph(model) if width is None and target is None else _narrow(screen, model, width, target, data)
    done = deliver(graph, output, opset=opset)
    report, check, latency = done.report, done.check, done.latency["network"]
    screen.line("exported", f"opset {report.opset}, free batch, {report.nodes} nodes, {count(report.bytes)}B")
    screen.line("inputs", f"{', '.join(report.inputs)} → {', '.join(report.outputs)}")
    agreement = "" if check.agreement is None else f", same class for {check.agreement:.0%} of the examples"
    screen.line(
        "check",
        f"ONNX Runtime against PyTorch on {', '.join(check.deviations)}: {check.deviation:.1e}, "
        f"allowed {check.allowed:.0e}{agreement}  PASS",
        "green",
    )
    screen.line(
        "latency",
        f"{latency.median:.3f} ms ± {latency.spread:.3f} (median of {latency.runs}, batch 1, {latency.threads} thread)",
    )
    screen.line("wrote", str(output))
    document = {"report": asdict(report), "check": asdict(check), "latency": asdict(latency)}
    screen.finish(document, "inspect", model)


def _narrow(screen: Screen, model: str, width: str | None, target: str | None, data: str | None) -> ModelGraph:
    """A slimmable network at one width."""
    from graphsurgery.cli.output import count
    from graphsurgery.cost import cost
    from graphsurgery.errors import SurgeryError
    from graphsurgery.recipes.slimmable import load_slimmable
    from graphsurgery.recipes.width_choice import width_for
    from graphsurgery.slimming import parse_width
    from graphsurgery.targets import parse_target
    from graphsurgery.training.data import load_data

    if width is not None and target is not None:
        raise SurgeryError("export: --width and --target exclude each other")
    statistics, _ = load_slimmable(model)
    slimmable = statistics.slimmable
    chosen = width_for(slimmable, parse_target(str(target))) if width is None else parse_width(width)
    graph = statistics.network(chosen, None if data is None else load_data(data))
    size = cost(graph)
    name = f"{chosen:g}" if isinstance(chosen, int | float) else width
    screen.line("width", f"{name}: {count(size.parameters)} parameters, {count(size.macs)} MACs")
    return graph

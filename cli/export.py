"""`graphsurgery export`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from graphsurgery.cli.options import OPENING, SHOWN, Opening, Output, Shown, writable


def export(
    model: str,
    /,
    *,
    output: Output,
    opset: Annotated[int | None, Parameter(validator=Number(gte=18))] = None,
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
    """
    writable(output)
    from dataclasses import asdict

    from graphsurgery.cli.output import Output as Screen
    from graphsurgery.cli.output import count
    from graphsurgery.recipes.delivery import deliver

    screen = Screen(shown)
    graph = opening.graph(model)
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

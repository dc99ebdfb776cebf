"""`graphsurgery export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from graphsurgery.cli.arguments.sources import MaybeDataset, Model
from graphsurgery.cli.options import OPENING, PROOF, SHOWN, WRITING, Opening, Output, Proof, Shown, Writing
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from pathlib import Path

    from graphsurgery.cli.output import Screen
    from graphsurgery.graph import ModelGraph
    from graphsurgery.onnx.runtime.latency import Latency
    from graphsurgery.recipes.delivery.deliver import Delivery
    from graphsurgery.recipes.delivery.quantize import Int8Report
    from graphsurgery.reports.sheet import Sheet
    from graphsurgery.training.data.dataset import Data


@Parameter(name="*", group="Quantisation")
@dataclass(frozen=True)
class Quantisation:
    """Whether the file is in 8 bits, and what gives the ranges."""

    int8: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Write weights and activations in 8 bits. Needs --calib."""
    calib: MaybeDataset = None
    """Data whose training examples give the activations' ranges, and whose test examples are measured."""
    calib_examples: Annotated[int, Parameter(validator=Number(gte=1))] = 256
    """How many training examples, at most all there are."""
    scheme: Literal["u8s7", "u8u8", "u8s8"] = "u8s7"
    """Activations in unsigned 8 bits; weights in signed 7 bits or unsigned 8 bits, which give the same on every
    processor, or in signed 8 bits, whose sums saturate on x86 processors without VNNI."""


_QUANTISATION = Quantisation()


def export(
    model: Model,
    /,
    *,
    output: Output,
    opset: Annotated[int | None, Parameter(validator=Number(gte=18))] = None,
    width: str | None = None,
    target: str | None = None,
    data: MaybeDataset = None,
    quantisation: Quantisation = _QUANTISATION,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    proof: Proof = PROOF,
    shown: Shown = SHOWN,
) -> None:
    """Write a network as one ONNX file with a free batch, compared with PyTorch on three batch sizes and timed.

    Parameters
    ----------
    model
        A checkpoint, an .onnx file, a state_dict (.pt or .safetensors) with --arch, or a model spec.
    opset
        Version of the operators, at least 18; by default the exporter's choice.
    width
        Of a slimmable network, the share of every space, or channels of single ones: conv1=8,conv2=16.
    target
        Of a slimmable network, the largest width that costs no more: macs=0.3x, params=1M, size=4MB, or timed in ONNX
        Runtime latency=5ms.
    data
        Compare on its examples, too; of a slimmable network, it gives the statistics of a width that are not in the
        file.
    """
    writing.allow(onnx=output, reads=[model, data, quantisation.calib, opening.arch])
    from graphsurgery.cli.output import Screen

    if quantisation.int8 and quantisation.calib is None:
        raise SurgeryError("export: --int8 needs examples to calibrate on; give --calib DATA")
    if not quantisation.int8 and quantisation != _QUANTISATION:
        raise SurgeryError("export: --calib, --calib-examples and --scheme belong to --int8; give it too")
    if quantisation.int8 and data is not None and width is None and target is None:
        raise SurgeryError("export: --int8 compares on the examples of --calib; leave out --data")
    screen = Screen(shown)
    real = None if data is None else opening.data(data, model)
    calibration = None if quantisation.calib is None else opening.data(quantisation.calib, model)
    examples = real or calibration
    if width is None and target is None:
        graph = opening.graph(model, examples.input_shape if examples else None)
    else:
        graph = _narrow(screen, model, width, target, real)
    if calibration is None:
        document = _deliver(screen, graph, output, opset, real, proof)
    else:
        document = _deliver_int8(screen, graph, output, opset, calibration, quantisation, proof)
    screen.line("wrote", str(output))
    screen.finish(document, "view", output)


def _deliver(
    screen: Screen, graph: ModelGraph, output: Path, opset: int | None, real: Data | None, proof: Proof
) -> dict[str, Any]:
    """Write the file, and show what it is."""
    from dataclasses import asdict

    from graphsurgery.recipes.delivery.deliver import deliver
    from graphsurgery.recipes.delivery.quantize import real_inputs

    inputs = None if real is None else real_inputs(graph, real)
    done = deliver(graph, output, opset=opset, inputs=inputs, rtol=proof.rtol)
    _show_export(screen, done)
    latency = done.latency["network"]
    screen.line("latency", f"{_time(latency)} (median of {latency.runs}, batch 1, {latency.threads} thread)")
    return {"report": asdict(done.report), "check": asdict(done.check), "latency": asdict(latency)}


def _deliver_int8(
    screen: Screen,
    graph: ModelGraph,
    output: Path,
    opset: int | None,
    data: Data,
    chosen: Quantisation,
    proof: Proof,
) -> dict[str, Any]:
    """Write the file in 8 bits, and show both networks."""
    from graphsurgery.recipes.delivery.quantize import deliver_int8

    report = deliver_int8(
        graph,
        output,
        data,
        examples=chosen.calib_examples,
        scheme=chosen.scheme,
        opset=opset,
        rtol=proof.rtol,
    )
    _show_export(screen, report.delivery)
    screen.show(_versions(report))
    agreement = "" if report.agreement is None else f", same class for {report.agreement:.1%}"
    screen.line(
        "int8",
        f"{report.quantised} tensors in 8 bits, ranges from {report.calibrated} training examples; on {report.tested} "
        f"test examples the outputs deviate by {report.deviation:.1e} of the largest{agreement}",
    )
    _show_schemes(screen, report)
    return report.as_dict()


def _versions(report: Int8Report) -> Sheet:
    """Size, latency and scores of both networks."""
    from graphsurgery.cli.output import columns, count
    from graphsurgery.reports.cells import metric_text

    metrics = [f"test {name}" for name in report.float32.metrics]
    numbers = ["size", "latency", *metrics]
    table = columns("", *numbers, right=numbers)
    for name, version in (("float32", report.float32), ("int8", report.int8)):
        measured = [metric_text(metric, value) for metric, value in version.metrics.items()]
        table.add_row(name, f"{count(version.bytes)}B", _time(version.latency), *measured)
    ratios = [
        report.int8.bytes / report.float32.bytes,
        report.int8.latency.median / report.float32.latency.median,
    ]
    table.add_row("ratio", *(f"{ratio:.3f}" for ratio in ratios), *("" for _ in metrics))
    return table


def _show_schemes(screen: Screen, report: Int8Report) -> None:
    """What each scheme makes of the network, with either kind of sums."""
    from graphsurgery.cli.output import columns
    from graphsurgery.reports.cells import metric_text

    metrics = list(report.float32.metrics)
    numbers = ["deviation", *(f"test {name}" for name in metrics)]
    headings = [
        "pairs that saturate",
        *(f"{name}, {kind}" for kind in ("exact sums", "saturating") for name in numbers),
    ]
    table = columns("scheme", *headings, right=headings, marks=["scheme"], drop=headings[:0:-1])
    for name, scheme in report.schemes.items():
        cells = []
        for sums in (scheme.exact, scheme.saturating):
            cells += [f"{sums.deviation:.1e}", *(metric_text(metric, sums.metrics[metric]) for metric in metrics)]
        table.add_row(f"{name}, taken" if name == report.scheme else name, str(scheme.overflowing), *cells)
    screen.show(table)
    taken = report.schemes[report.scheme]
    computed = f"computed on {report.compared} test examples, next to float32"
    if taken.overflowing:
        screen.line(
            "scheme",
            f"{report.scheme}: {taken.overflowing} pairs of weights saturate for some inputs on x86 processors without "
            f"VNNI ({computed}); the other schemes give the same on every processor",
            "yellow",
        )
    else:
        screen.line("scheme", f"{report.scheme}: sums are exact on every x86 and Arm processor ({computed})")


def _show_export(screen: Screen, done: Delivery) -> None:
    from graphsurgery.cli.output import count

    report, check = done.report, done.check
    screen.line("exported", f"opset {report.opset}, free batch, {report.nodes} nodes, {count(report.bytes)}B")
    screen.line("inputs", f"{', '.join(report.inputs)} → {', '.join(report.outputs)}")
    agreement = "" if check.agreement is None else f", same class for {check.agreement:.0%} of the examples"
    screen.line(
        "check",
        f"ONNX Runtime against PyTorch on {', '.join(check.deviations)}: {check.deviation:.1e}, "
        f"allowed {check.allowed:.0e}{agreement}  PASS",
        "green",
    )
    screen.untested(check.remarks)


def _time(latency: Latency) -> str:
    return f"{latency.median:.3f} ms ± {latency.spread:.3f}"


def _narrow(screen: Screen, model: str, width: str | None, target: str | None, data: Data | None) -> ModelGraph:
    """A slimmable network at one width."""
    from graphsurgery.cli.output import count
    from graphsurgery.recipes.slimming.slimmable import load_slimmable
    from graphsurgery.recipes.slimming.width_choice import width_for
    from graphsurgery.surgery.channels.cost import cost
    from graphsurgery.surgery.channels.slimming import parse_width
    from graphsurgery.surgery.channels.targets import parse_target

    if width is not None and target is not None:
        raise SurgeryError("export: --width and --target exclude each other")
    statistics, _ = load_slimmable(model)
    chosen = width_for(statistics.slimmable, parse_target(str(target))) if width is None else parse_width(width)
    graph = statistics.network(chosen, data)
    size = cost(graph)
    name = f"{chosen:g}" if isinstance(chosen, int | float) else width
    screen.line("width", f"{name}: {count(size.parameters)} parameters, {count(size.macs)} MACs")
    return graph

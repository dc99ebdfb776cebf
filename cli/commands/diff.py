"""`graphsurgery diff`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import File
from graphsurgery.cli.options import SHOWN, Shown

if TYPE_CHECKING:
    from graphsurgery.models.loading import Shape
    from graphsurgery.onnx.files.nodes import OnnxNode
    from graphsurgery.onnx.runtime.comparing import NodePair, OnnxDiff
    from graphsurgery.onnx.runtime.latency import Latency
    from graphsurgery.reports.sheet import Sheet


def diff(
    before: File,
    after: File,
    /,
    *,
    all_nodes: Annotated[bool, Parameter(name="--all", negative="", show_default=False)] = False,
    latency: Annotated[bool, Parameter(negative="--no-latency")] = True,
    input: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    shown: Shown = SHOWN,
) -> None:
    """Show what changed between two ONNX files, node by node, and what that makes of size and latency.

    Parameters
    ----------
    before
        An .onnx file.
    after
        Another one.
    all_nodes
        List the nodes that did not change, too.
    latency
        Time both in ONNX Runtime, in turn, on one thread.
    input
        Shape of one input of both without the batch, such as 3x224x224, where the files leave it open; of several
        inputs NAME=1x3x224x224, with the batch. May be given again.
    """
    from graphsurgery.cli.output import Screen, few
    from graphsurgery.models.loading import parse_shapes
    from graphsurgery.onnx.runtime.comparing import compare_onnx

    screen = Screen(shown)
    shapes = parse_shapes(input)
    found = compare_onnx(before, after, shapes)
    times, untimed = _timed(before, after, shapes) if latency else (None, "")
    listed = [pair for pair in found.pairs if all_nodes or pair.kind != "same"]
    if listed:
        screen.show(_nodes(listed))
    counts = {kind: sum(pair.kind == kind for pair in found.pairs) for kind in _SIGNS}
    screen.line("nodes", ", ".join(f"{number} {kind}" for kind, number in counts.items()))
    for line in found.ends:
        screen.line("changed", line)
    screen.show(_totals(found, times))
    for side in (found.before, found.after):
        if side.uncounted:
            screen.line("note", f"{side.path}: MACs without {few(side.uncounted)}", "yellow")
    if untimed:
        screen.line("note", f"latency not measured: {untimed}", "yellow")
    document: dict[str, Any] = {
        "before": asdict(found.before),
        "after": asdict(found.after),
        "counts": counts,
        "ends": found.ends,
        "nodes": [{"kind": pair.kind, **asdict(pair)} for pair in listed],
        "latency": None if times is None else dict(zip(("before", "after"), map(asdict, times), strict=True)),
    }
    screen.finish(document, "view", after)


def _timed(before: Path, after: Path, shapes: Shape | None) -> tuple[tuple[Latency, Latency] | None, str]:
    """The times of both, or why there are none."""
    from graphsurgery.errors import SurgeryError
    from graphsurgery.onnx.runtime.comparing import compare_latency

    try:
        return compare_latency(before, after, shapes=shapes), ""
    except SurgeryError as cause:
        return None, str(cause)


def _nodes(pairs: Sequence[NodePair]) -> Sheet:
    """A row for each pair of nodes."""
    from graphsurgery.cli.output import columns

    head = ("", "node", "operator", "output", "parameters", "MACs", "also changed")
    numbers, marks = ["parameters", "MACs"], ["", "operator", "output"]
    table = columns(*head, right=numbers, marks=marks, names=["node"], drop=["also changed", "output"])
    for pair in pairs:
        table.add_row(*_cells(pair))
    return table


_SIGNS = {"changed": "~", "removed": "-", "inserted": "+", "same": ""}


def _cells(pair: NodePair) -> list[str]:
    """A row of the table; what changed as `old → new`."""
    from graphsurgery.cli.output import count
    from graphsurgery.onnx.files.nodes import shape_text

    def shapes(node: OnnxNode) -> str:
        return ", ".join(map(shape_text, node.shapes))

    def macs(node: OnnxNode) -> str:
        return "?" if node.macs is None else count(node.macs) if node.macs else ""

    def parameters(node: OnnxNode) -> str:
        return count(node.parameters) if node.parameters else ""

    nodes = [node for node in (pair.before, pair.after) if node is not None]
    texts = [
        [
            f"{node.name} ({node.layer})" if node.layer else node.name,
            node.operator,
            shapes(node),
            parameters(node),
            macs(node),
        ]
        for node in nodes
    ]
    cells = [
        " → ".join(dict.fromkeys(text or "0" for text in cell)) if any(cell) else ""
        for cell in zip(*texts, strict=True)
    ]
    others = [change.removeprefix("attribute ") for change in pair.changes if change.startswith("attribute ")]
    # Other shapes have other values without saying.
    if "weights" in pair.changes and "parameters" not in pair.changes:
        others.append("values")
    others += ["inputs"] if "inputs" in pair.changes else []
    return [_SIGNS[pair.kind], *cells, ", ".join(others)]


def _totals(found: OnnxDiff, times: tuple[Latency, Latency] | None) -> Sheet:
    from graphsurgery.cli.output import columns, count

    table = columns("", "before", "after", "ratio", right=["before", "after", "ratio"])

    def row(name: str, before: float, after: float, texts: list[str]) -> None:
        table.add_row(name, *texts, f"{after / before:.3f}" if before else "")

    for name, unit in (("nodes", ""), ("parameters", ""), ("MACs", ""), ("bytes", "B")):
        before, after = (getattr(side, name.lower()) for side in (found.before, found.after))
        row("size" if unit else name, before, after, [f"{count(value)}{unit}" for value in (before, after)])
    if times is not None:
        texts = [f"{time.median:.3f} ms ± {time.spread:.3f}" for time in times]
        row(f"latency (median of {times[0].runs})", times[0].median, times[1].median, texts)
    return table

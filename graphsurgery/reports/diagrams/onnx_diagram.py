"""The picture of an ONNX file: its nodes, those with weights colored by operator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from graphsurgery.onnx.files.nodes import OnnxGraph, OnnxNode, shape_text
from graphsurgery.reports.diagrams.diagram import Box, Diagram, Key
from graphsurgery.reports.diagrams.plan import Plan


def onnx_diagram(
    graph: OnnxGraph, title: str, size: int, plan: Plan | None = None, notes: tuple[str, ...] = ()
) -> Diagram:
    """The nodes of a file with operator, shapes for a batch of one, and parameters.

    Args:
        graph: what `read_nodes` gave.
        title: what the picture is called.
        size: bytes of the file.
        plan: how the network in it may be cut.
        notes: what else a reader should know.
    """
    colored = {node.operator for node in graph.nodes if node.parameters}
    boxes, edges = _wired(graph, colored)
    return Diagram(
        title=title,
        summary=(
            f"{len(graph.nodes):,} nodes",
            f"{graph.parameters:,} parameters",
            _macs(graph),
            f"{size:,} bytes",
        ),
        boxes=boxes,
        edges=tuple(dict.fromkeys(edges)),
        heads=("operator", "nodes", "parameters"),
        keys=_keys(graph, colored),
        notes=("Shapes and MACs are for a batch of one.", *notes),
        plan=plan,
    )


def _macs(graph: OnnxGraph) -> str:
    """Multiply-accumulates; where some nodes are not counted, those of the others."""
    if not graph.uncounted:
        return f"{graph.macs:,} MACs per image"
    known = f"{graph.macs:,} MACs without" if graph.macs else "MACs not counted of"
    free = any(not isinstance(size, int) for shape in graph.inputs.values() for size in (shape or ())[1:])
    return f"{known} {len(graph.uncounted):,} nodes" + (", whose sizes are free: give --input" if free else "")


def _wired(graph: OnnxGraph, colored: Collection[str]) -> tuple[dict[str, Box], list[tuple[str, str]]]:
    """A box for each input, node and output, and who reads whom."""
    boxes, edges, writer = {}, [], {}
    for name, shape in graph.inputs.items():
        key = writer[name] = f"input {name}"
        boxes[key] = _end("input", name, shape_text(shape))
    for number, node in enumerate(graph.nodes):
        key = f"node {number}"
        boxes[key] = _box(node, node.operator in colored)
        # Topological order: what is read was written before.
        edges += [(writer[name], key) for name in node.inputs if name in writer]
        writer.update(dict.fromkeys(node.outputs, key))
    for name, shape in graph.outputs.items():
        key = f"output {name}"
        boxes[key] = _end("output", name, shape_text(shape))
        edges += [(writer[name], key)] if name in writer else []
    return boxes, edges


def _keys(graph: OnnxGraph, colored: Collection[str]) -> dict[str, Key]:
    """A line of the key for each operator, those with most parameters first."""
    counts = Counter(node.operator for node in graph.nodes)
    parameters = Counter[str]()
    for node in graph.nodes:
        parameters[node.operator] += node.parameters
    order = sorted(counts, key=lambda operator: (-parameters[operator], -counts[operator], operator))
    texts = {name: (f"{counts[name]:,}", f"{parameters[name]:,}" if parameters[name] else "") for name in order}
    return {name: Key((name, *text), grey=name not in colored) for name, text in texts.items()}


def _end(kind: str, name: str, shape: str) -> Box:
    """The box of an input or an output."""
    return Box(name, (kind, shape), (), {kind: name, "shape": shape})


def _box(node: OnnxNode, colored: bool) -> Box:
    shapes = ", ".join(map(shape_text, node.shapes))
    details = {
        "name": node.name,
        "output": shapes,
        "parameters": f"{node.parameters:,}" if node.parameters else "",
        "MACs": "not counted" if node.macs is None else f"{node.macs:,}" if node.macs else "",
        **{name: str(list(shape)) for name, shape in node.weights.items()},
        **node.attributes,
    }
    return Box(
        title=node.operator,
        lines=(node.layer or node.name, shapes),
        bands=((node.operator, 1.0),) if colored else ((None, 1.0),),
        details={key: text for key, text in details.items() if text},
        parameters=node.parameters,
        macs=node.macs or 0,
        alike=(node.operator, shapes, *sorted(map(str, node.weights.values())), *sorted(node.attributes.items())),
    )

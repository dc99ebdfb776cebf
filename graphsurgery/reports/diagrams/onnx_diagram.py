"""The picture of an ONNX file: its nodes, those with weights colored by operator."""

from __future__ import annotations

from collections import Counter

from graphsurgery.onnx.files.nodes import OnnxGraph, OnnxNode, shape_text
from graphsurgery.reports.diagrams.diagram import Box, Diagram, Key


def onnx_diagram(graph: OnnxGraph, title: str, size: int) -> Diagram:
    """The nodes of a file with operator, shapes for a batch of one, and parameters.

    Args:
        graph: what `read_nodes` gave.
        title: what the picture is called.
        size: bytes of the file.
    """
    colored = {node.operator for node in graph.nodes if node.parameters}
    boxes, edges, writer = {}, [], {}
    for name, shape in graph.inputs.items():
        boxes[f"input {name}"] = Box(
            name, ("input", shape_text(shape)), (), {"input": name, "shape": shape_text(shape)}
        )
        writer[name] = f"input {name}"
    for number, node in enumerate(graph.nodes):
        key = f"node {number}"
        boxes[key] = _box(node, node.operator in colored)
        # Topological order: what is read was written before.
        edges += [(writer[name], key) for name in node.inputs if name in writer]
        writer.update(dict.fromkeys(node.outputs, key))
    for name, shape in graph.outputs.items():
        key = f"output {name}"
        boxes[key] = Box(name, ("output", shape_text(shape)), (), {"output": name, "shape": shape_text(shape)})
        edges += [(writer[name], key)] if name in writer else []
    counts = Counter(node.operator for node in graph.nodes)
    parameters = Counter[str]()
    for node in graph.nodes:
        parameters[node.operator] += node.parameters
    order = sorted(counts, key=lambda operator: (-parameters[operator], -counts[operator], operator))
    return Diagram(
        title=title,
        summary=(
            f"{len(graph.nodes):,} nodes",
            f"{graph.parameters:,} parameters",
            f"{graph.macs:,} MACs per image",
            f"{size:,} bytes",
        ),
        boxes=boxes,
        edges=tuple(dict.fromkeys(edges)),
        heads=("operator", "nodes", "parameters"),
        keys={
            operator: Key(
                (operator, f"{counts[operator]:,}", f"{parameters[operator]:,}" if parameters[operator] else ""),
                grey=operator not in colored,
            )
            for operator in order
        },
        notes=("Shapes and MACs are for a batch of one.",),
    )


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
    )

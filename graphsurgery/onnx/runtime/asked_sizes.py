"""Values that say how large others become: shapes, repeats, pads, counts of steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from graphsurgery.onnx.files.model_file import bodies, read_outside

_ASKED: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1, 2), "Pad": (1,), "Resize": (1, 2, 3), "Upsample": (1,),
    "ConstantOfShape": (0,), "Range": (0, 1, 2), "OneHot": (1,), "CenterCropPad": (1,), "Col2Im": (1, 2),
    "AffineGrid": (1,), "MaxUnpool": (2,), "TopK": (1,), "Split": (1,), "DFT": (1,), "STFT": (1, 3),
    "HannWindow": (0,), "HammingWindow": (0,), "BlackmanWindow": (0,), "MelWeightMatrix": (0, 1, 2, 3, 4),
    "Loop": (0, 1), "com.microsoft.Range": (0, 1, 2), "com.microsoft.Pad": (1,), "com.microsoft.CropAndResize": (3,),
    "com.microsoft.GroupQueryAttention": (6,), "com.microsoft.BeamSearch": (1, 2, 3, 4),
    "com.microsoft.GreedySearch": (1, 2), "com.microsoft.Sampling": (1, 2),
}  # fmt: skip
"""The inputs of an operator by which its results grow, or the number of its steps."""

_BOUNDED = frozenset({"Shape", "Size", "ArgMax", "ArgMin", "NonZero"})
"""What they give is no larger for larger numbers."""
_STATES_FROM = {"Loop": (2, 1), "Scan": (0, 0)}
"""Where the states begin among the inputs of the graph inside, and among its outputs."""


def known(node: onnx.NodeProto) -> bool:
    """Whether it is known by which of its inputs the results of an operator grow."""
    return node.domain in ("", "ai.onnx") or _kind(node) in _ASKED


def asked_sizes(graph: onnx.GraphProto) -> set[str]:
    """The inputs of a graph from which a size is computed that an operator is asked for."""
    sources: dict[str, list[str]] = {}
    left = list(_followed(graph, sources))
    seen: set[str] = set()
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left.extend(sources.get(name, ()))
    return {value.name for value in graph.input} & seen


def _followed(graph: onnx.GraphProto, sources: dict[str, list[str]]) -> Iterator[str]:
    """Add what each value is computed from; the sizes that are asked for."""
    for node in graph.node:
        read = [] if node.op_type in _BOUNDED else [*node.input, *read_outside(node)]
        for name in filter(None, node.output):
            sources.setdefault(name, []).extend(filter(None, read))
        yield from (node.input[at] for at in _ASKED.get(_kind(node), ()) if at < len(node.input) and node.input[at])
        for body in bodies(node):
            _connect(node, body, sources)
            yield from _followed(body, sources)
            yield from (value.name for value in body.output[:1] if node.op_type == "Loop")  # whether it goes on


def _connect(node: onnx.NodeProto, body: onnx.GraphProto, sources: dict[str, list[str]]) -> None:
    """Lead from the inputs of a node to those of the graph inside it, and from its outputs to the node's."""
    first, skipped = _STATES_FROM.get(node.op_type, (len(body.input), 0))
    states = list(body.input)[first:]
    for value, given in zip(body.input, node.input, strict=False):
        sources.setdefault(value.name, []).append(given)
    for value, carried in zip(states, list(body.output)[skipped:], strict=False):
        sources.setdefault(value.name, []).append(carried.name)
    for name, value in zip(node.output, list(body.output)[skipped:], strict=False):
        sources.setdefault(name, []).append(value.name)


def _kind(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"

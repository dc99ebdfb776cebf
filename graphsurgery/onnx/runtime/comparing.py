"""Two `.onnx` files next to each other: which nodes stayed, changed, went and came."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from graphsurgery.errors import SurgeryError
from graphsurgery.onnx.files.axes import Given
from graphsurgery.onnx.files.model_file import OnnxFile, read_onnx, read_outside
from graphsurgery.onnx.files.nodes import OnnxGraph, OnnxNode, shape_text
from graphsurgery.onnx.runtime.latency import Latency, measure_latency
from graphsurgery.onnx.runtime.measured_shapes import counted_nodes
from graphsurgery.onnx.runtime.sessions import fixed_batch, open_session

_TABLE = 36_000_000
"""Cells of the largest table that is filled to compare two sequences."""


@dataclass(frozen=True)
class NodePair:
    """A node of the first file and what it is in the second; one of them is None where it was removed or inserted.

    Attributes:
        before, after: the node.
        changes: what differs: `operator`, `shapes`, `parameters`, `macs`, `weights` (their values or shapes), `inputs`
            (they are what another node gives, or in another order), and names of attributes as `attribute NAME`; empty
            where nothing does, and of removed and inserted nodes.
    """

    before: OnnxNode | None
    after: OnnxNode | None
    changes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`removed`, `inserted`, `changed` or `same`."""
        if self.before is None or self.after is None:
            return "removed" if self.after is None else "inserted"
        return "changed" if self.changes else "same"


@dataclass(frozen=True)
class Side:
    """One of the two files; counts are those of `OnnxGraph`, bytes those of `OnnxFile`."""

    path: Path
    nodes: int
    parameters: int
    macs: int
    bytes: int
    uncounted: tuple[str, ...]


@dataclass(frozen=True)
class OnnxDiff:
    """What differs between two files.

    Attributes:
        before, after: the files.
        pairs: all nodes of both, in the order in which they run.
        ends: inputs and outputs of the network that differ, and the opsets, in words.
    """

    before: Side
    after: Side
    pairs: tuple[NodePair, ...]
    ends: tuple[str, ...]


def compare_onnx(before: Path | str, after: Path | str, shapes: Given | None = None) -> OnnxDiff:
    """Align the nodes of two ONNX files and say what differs.

    Nodes are the same one, first, where they have the operator and the names of their weights in common; between such
    nodes, where operator and name are the same; between those, in the order of operators with equal shapes, and
    of operators alone. Matches never cross.

    Args:
        before, after: the files.
        shapes: of the inputs of both, where they leave more than the batch free; see `read_nodes`.

    Raises:
        CheckpointError: a file is missing or damaged; see `read_onnx`.
        SpecError: a shape does not fit.
    """
    files = read_onnx(before), read_onnx(after)
    left, right = (counted_nodes(file, shapes) for file in files)
    values = [file.digests() for file in files]
    places = aligned(left.nodes, right.nodes)
    partners = {i: j for i, j in places if i is not None and j is not None}
    wires = _Wires(files[0].model.graph, partners), _Wires(files[1].model.graph, {j: j for j in partners.values()})
    pairs = []
    for i, j in places:
        old, new = None if i is None else left.nodes[i], None if j is None else right.nodes[j]
        changes = () if old is None or new is None else _changes(old, new, values[0], values[1])
        if i is not None and j is not None and _differ(wires[0].of(i), wires[1].of(j)):
            changes = (*changes, "inputs")
        pairs.append(NodePair(old, new, changes))
    ends = (*_ends(left, right), *_given(left, right, wires), *_versions(files))
    return OnnxDiff(_side(files[0], left), _side(files[1], right), tuple(pairs), ends)


def compare_latency(
    before: Path | str, after: Path | str, *, runs: int = 50, shapes: Given | None = None
) -> tuple[Latency, Latency]:
    """Times of two ONNX files on one thread, run in turn; batch 1, or the size at which both are fixed.

    Args:
        before, after: the files.
        runs: timed runs of each.
        shapes: of the inputs of both, where they leave more than the batch free; see `read_nodes`.

    Raises:
        SurgeryError: they are fixed at unlike batch sizes, or one cannot be run on random inputs.
    """
    fixed = {path: fixed_batch(open_session(path, threads=1)) for path in (before, after)}
    sizes = {size for size in fixed.values() if size is not None}
    if len(sizes) > 1:
        raise SurgeryError(f"{before}, {after}: are fixed at batches of {fixed[before]} and {fixed[after]}")
    given = () if shapes is None else shapes if isinstance(shapes, Mapping) else (shapes,)
    files = {"before": before, "after": after}
    found = measure_latency(files, batch=min(sizes, default=1), runs=runs, shapes=given)
    return found["before"], found["after"]


def aligned(left: Sequence[OnnxNode], right: Sequence[OnnxNode]) -> list[tuple[int | None, int | None]]:
    """Indices of the nodes that belong together, in order; None on the side that lacks the node."""
    keys: tuple[Callable[[OnnxNode], Hashable], ...] = (
        lambda node: (node.operator, tuple(sorted(node.weights))) if node.weights else id(node),
        lambda node: (node.operator, node.name),
        lambda node: (node.operator, node.shapes, tuple(node.weights.values())),
        lambda node: node.operator,
    )
    gaps = [(0, len(left), 0, len(right))]
    matched: list[tuple[int, int]] = []
    for key in keys:
        remaining = []
        for a, b, c, d in gaps:
            i, j = a, c
            pairs = _common([key(node) for node in left[a:b]], [key(node) for node in right[c:d]])
            for k, m in pairs:
                remaining.append((i, a + k, j, c + m))
                i, j = a + k + 1, c + m + 1
            remaining.append((i, b, j, d))
            matched += [(a + k, c + m) for k, m in pairs]
        gaps = [(a, b, c, d) for a, b, c, d in remaining if a < b and c < d]
    return list(_in_order(sorted(matched), len(left), len(right)))


def _common(left: Sequence[Hashable], right: Sequence[Hashable]) -> list[tuple[int, int]]:
    """The longest common subsequence, as early as it can stand: its indices on both sides.

    Very long sequences get an approximation.
    """
    if len(left) * len(right) > _TABLE:
        blocks = difflib.SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
        return [(block.a + k, block.b + k) for block in blocks for k in range(block.size)]
    numbers: dict[Hashable, int] = {}
    a, b = (np.array([numbers.setdefault(key, len(numbers)) for key in side], np.int64) for side in (left, right))
    # lengths[i, j] is that of the subsequence of left[i:] and right[j:].
    lengths = np.zeros((len(a) + 1, len(b) + 1), np.int32)
    for i in range(len(a) - 1, -1, -1):
        best = np.maximum(lengths[i + 1, :-1], lengths[i + 1, 1:] + (b == a[i]))
        lengths[i, :-1] = np.maximum.accumulate(best[::-1])[::-1]
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif lengths[i + 1, j] >= lengths[i, j + 1]:
            i += 1
        else:
            j += 1
    return found


def _in_order(matched: list[tuple[int, int]], lefts: int, rights: int) -> list[tuple[int | None, int | None]]:
    """All indices of both sides: what was removed and inserted stands before the next match."""
    i = j = 0
    found: list[tuple[int | None, int | None]] = []
    for a, b in (*matched, (lefts, rights)):
        found += [(k, None) for k in range(i, a)] + [(None, k) for k in range(j, b)]
        found += [(a, b)] if a < lefts else []
        i, j = a + 1, b + 1
    return found


def _changes(old: OnnxNode, new: OnnxNode, before: dict[str, str], after: dict[str, str]) -> tuple[str, ...]:
    names = ("operator", "shapes", "parameters", "macs")
    changes = [name for name in names if getattr(old, name) != getattr(new, name)]
    if [before.get(name) for name in old.weights] != [after.get(name) for name in new.weights]:
        changes.append("weights")
    attributes = dict.fromkeys((*old.attributes, *new.attributes))
    changes += [f"attribute {name}" for name in attributes if old.attributes.get(name) != new.attributes.get(name)]
    return tuple(changes)


_UNKNOWN = "what only one of the files has"


class _Wires:
    """What the nodes of a file read, in words that two files have in common.

    Args:
        graph: of the file.
        partners: the number by which a node is known in both files; those without are in one alone.
    """

    def __init__(self, graph: onnx.GraphProto, partners: Mapping[int, int]) -> None:
        self.nodes = graph.node
        weights = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
        self._sources: dict[str, Hashable] = {"": "nothing", **dict.fromkeys(weights, "a weight")}
        inputs = [value.name for value in graph.input if value.name not in self._sources]
        self._sources |= {name: ("input", number) for number, name in enumerate(inputs)}
        for number, node in enumerate(graph.node):
            made = partners.get(number, _UNKNOWN)
            self._sources |= {
                name: made if made == _UNKNOWN else (made, at) for at, name in enumerate(node.output) if name
            }

    def of(self, number: int) -> list[Hashable]:
        """What a node reads, with what the graphs inside of it do; what is left out at the end is nothing."""
        node = self.nodes[number]
        found = [self.source(name) for name in (*node.input, *read_outside(node))]
        while found and found[-1] == "nothing":
            found.pop()
        return found

    def source(self, name: str) -> Hashable:
        """What gives a value."""
        return self._sources.get(name, _UNKNOWN)


def _differ(before: Sequence[Hashable], after: Sequence[Hashable]) -> bool:
    """Whether two nodes read otherwise; what came or went in front of them is told by itself."""
    known = all(_UNKNOWN not in pair for pair in zip(before, after, strict=False) if pair[0] != pair[1])
    return (known and len(before) != len(after)) or any(
        a != b and _UNKNOWN not in (a, b) for a, b in zip(before, after, strict=False)
    )


def _given(left: OnnxGraph, right: OnnxGraph, wires: tuple[_Wires, _Wires]) -> list[str]:
    """Outputs of both files that other nodes give."""
    pairs = zip(left.outputs, right.outputs, strict=False)
    moved = [b for a, b in pairs if _differ([wires[0].source(a)], [wires[1].source(b)])]
    return [f"outputs: {', '.join(moved)} given by another node"] if moved else []


def _versions(files: tuple[OnnxFile, OnnxFile]) -> list[str]:
    """Opsets, by which one operator means several things."""
    words = [
        ", ".join(sorted(f"{entry.domain} {entry.version}".strip() for entry in file.model.opset_import))
        for file in files
    ]
    return [f"opset: {words[0]} → {words[1]}"] if words[0] != words[1] else []


def _side(file: OnnxFile, graph: OnnxGraph) -> Side:
    return Side(file.path, len(graph.nodes), graph.parameters, graph.macs, file.bytes, graph.uncounted)


def _ends(left: OnnxGraph, right: OnnxGraph) -> list[str]:
    """Inputs and outputs that differ in name, type or shape."""
    found = []
    for kind in ("inputs", "outputs"):
        ends = [(getattr(graph, kind), graph.types) for graph in (left, right)]
        typed = any(a != b for a, b in zip(*([types[name] for name in end] for end, types in ends), strict=False))
        words = [
            ", ".join(f"{name} {types[name] + ' ' if typed else ''}{shape_text(end[name])}" for name in end)
            for end, types in ends
        ]
        if words[0] != words[1]:
            found.append(f"{kind}: {words[0]} → {words[1]}")
    return found

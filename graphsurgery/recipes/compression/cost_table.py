"""What a network would take at other widths in ONNX Runtime: a table of measured operators, space by space.

Whole networks differ by less than a busy machine varies. So the runtime itself notes how long each operator takes, in
networks in which one space is cut: every operator that has changed its shapes there gets the share of its time that is
left at that size. An operator that several spaces touch has the product of their shares.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from graphsurgery.axes.maps import Widths
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.onnx.editing.file_edit import edited
from graphsurgery.onnx.importing.importer import Imported, import_onnx
from graphsurgery.onnx.runtime.latency import Timing, measure_latency
from graphsurgery.onnx.runtime.profiling import Profile, profile
from graphsurgery.passes.compress import compress
from graphsurgery.progress import phase
from graphsurgery.surgery.channels.planned_cost import PlannedCost

STEPS = (32, 16, 8, 4)
"""Steps that a runtime may reward, largest first; 1 is what is left."""
_RESOLVED = 0.1
_LEVELS, _FEW_LEVELS, _MANY_SPACES = (0.125, 0.25, 0.5, 0.75), (0.25, 0.5), 40
_PROBED = 3
_SIZES_LEFT = 4
_UNREWARDED = 0.25
"""A step is rewarded where the channels below a multiple save less than this part of their share of the time."""

Shares = Mapping[str, float]
"""By operator: the part of its time that is left."""


class CutBench(Protocol):
    """Where networks with one space cut are measured.

    Attributes:
        whole: microseconds of every operator of the whole network.
        other: microseconds of a run that no operator has.
    """

    @property
    def whole(self) -> Mapping[str, float]: ...

    @property
    def other(self) -> float: ...

    def shares(self, space: str, sizes: Sequence[int]) -> list[Shares]:
        """The operators that a space touches, at each of these sizes of it."""


@dataclass(frozen=True)
class SpaceCosts:
    """What is left of the operators that a space touches.

    Attributes:
        size: of the whole space.
        sizes: those that were measured, smallest first.
        shares: by operator, a share for each of these sizes, never less for more channels.
    """

    size: int
    sizes: tuple[int, ...]
    shares: Mapping[str, tuple[float, ...]]

    @cached_property
    def curve(self) -> tuple[Any, Any]:
        """Sizes, and shares `[size, operator]`, from none to all channels; below the smallest the line goes on."""
        points = np.array([*self.sizes, self.size], dtype=float)
        table = np.array([[*shares, 1.0] for shares in self.shares.values()]).T.reshape(len(points), len(self.shares))
        first, second = (0, 1) if len(points) > 1 else (0, 0)
        slope = (table[second] - table[first]) / max(1.0, points[second] - points[first])
        none = np.clip(table[first] - slope * points[first], 0.0, table[first])
        return np.concatenate([[0.0], points]), np.concatenate([none[None], table])

    def at(self, size: int) -> Any:
        """The share of each operator, in order, at a size; a line between those that were measured."""
        points, table = self.curve
        place = int(np.clip(np.searchsorted(points, size) - 1, 0, len(points) - 2))
        part = (size - points[place]) / (points[place + 1] - points[place])
        return table[place] + part * (table[place + 1] - table[place])


@dataclass(frozen=True)
class CostTable:
    """What a network takes in the runtime at any widths.

    Attributes:
        operators: microseconds of every operator of the whole network.
        other: microseconds of a run that no operator has.
        spaces: what is left at other sizes of a space.
        unmeasured: why a space is not in the table; it counts as if cutting it saved nothing.
        networks: how many networks were measured.
        seconds: how long that took.
    """

    operators: Mapping[str, float]
    other: float
    spaces: Mapping[str, SpaceCosts]
    unmeasured: Mapping[str, str]
    networks: int
    seconds: float

    @cached_property
    def _places(self) -> Mapping[str, Any]:
        order = {name: number for number, name in enumerate(self.operators)}
        return {name: np.array([order[o] for o in costs.shares], dtype=int) for name, costs in self.spaces.items()}

    def microseconds(self, sizes: Mapping[str, int]) -> float:
        """A run of the network with these sizes; spaces that are not named, or not in the table, stay whole."""
        times = np.array(list(self.operators.values()))
        for name, size in sizes.items():
            costs = self.spaces.get(name)
            if costs is not None and size < costs.size:
                times[self._places[name]] *= costs.at(size)
        return float(times.sum()) + self.other

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form."""
        spaces = {
            name: {
                "size": costs.size,
                "sizes": list(costs.sizes),
                "shares": {operator: [round(s, 4) for s in shares] for operator, shares in costs.shares.items()},
            }
            for name, costs in self.spaces.items()
        }
        return {
            "operators": {name: round(time, 2) for name, time in self.operators.items()},
            "other": round(self.other, 2),
            "spaces": spaces,
            "unmeasured": dict(self.unmeasured),
            "networks": self.networks,
            "seconds": self.seconds,
        }


def measure_table(
    bench: CutBench, spaces: Mapping[str, int], step: int = 1, known: CostTable | None = None
) -> CostTable:
    """The table of these spaces, by name with their sizes.

    Each is measured at four sizes that are multiples of `step` (two where there are many spaces). A table that is known
    from larger steps keeps the spaces that it has several sizes of.

    Raises:
        SurgeryError: no space can be measured.
    """
    began = time.perf_counter()
    levels = _LEVELS if len(spaces) <= _MANY_SPACES else _FEW_LEVELS
    known = known or CostTable({}, 0.0, {}, {}, 0, 0.0)
    found = {name: costs for name, costs in known.spaces.items() if len(costs.sizes) > 1}
    unmeasured, networks = {}, known.networks
    for name, size in _one_by_one("measuring spaces", spaces):
        if name in found:
            continue
        sizes = _sizes(size, step, levels)
        if not sizes:
            unmeasured[name] = f"has no multiple of {step} below its {size} channels"
            continue
        try:
            measured = bench.shares(name, sizes)
        except SurgeryError as cause:
            unmeasured[name] = one_line(cause)
            continue
        networks += len(sizes)
        operators = dict.fromkeys(operator for shares in measured for operator in shares)
        rising = {o: _rising([shares.get(o, 1.0) for shares in measured]) for o in operators}
        found[name] = SpaceCosts(size, tuple(sizes), rising)
    if not found:
        reason = next(iter(unmeasured.values()), "it has no space that can be cut")
        raise SurgeryError(f"latency: no space of the network can be measured: {reason}; give a target in macs")
    return CostTable(
        dict(bench.whole), bench.other, found, unmeasured, networks, known.seconds + time.perf_counter() - began
    )


def _one_by_one(what: str, spaces: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """The spaces with their sizes, announced as steps of a phase."""
    with phase(what, len(spaces)) as at:
        for name, size in spaces.items():
            at.say(name)
            yield name, size
            at.step()


@dataclass(frozen=True)
class Steps:
    """Which sizes the runtime rewards.

    Attributes:
        step: the largest step such that channels below a multiple of it save little.
        saved: by step, the most that channels below a multiple of it save, over what their share would be.
        spaces: which were probed.
    """

    step: int
    saved: Mapping[int, float]
    spaces: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form."""
        saved = {str(step): part for step, part in self.saved.items()}
        return {"step": self.step, "saved": saved, "spaces": list(self.spaces)}


def find_step(bench: CutBench, spaces: Mapping[str, int], *, largest: int = STEPS[0]) -> Steps:
    """The step that the runtime rewards, by what single channels more or less cost in these spaces, by name.

    Each is measured at a multiple of 32 (or the largest power of two below) near a half of it, and below that by half
    a step, and by a step less one channel: neither may save much, or the step is not rewarded. No step above
    `largest` is taken, which would leave small spaces hardly a choice.
    """
    lost: dict[tuple[int, int], float] = {}
    due: dict[tuple[int, int], float] = {}
    probed = []
    for name, size in _one_by_one("finding the step that the runtime rewards, spaces", spaces):
        base = _base(size)
        steps = [step for step in STEPS if step <= base]
        if not steps:
            continue
        gaps = [(step, gap) for step in steps for gap in (step // 2, step - 1)]
        at_base, *below = bench.shares(name, [base, *(base - gap for _, gap in gaps)])
        touched = dict.fromkeys(operator for shares in (at_base, *below) for operator in shares)

        def cost(shares: Shares, touched: Mapping[str, None] = touched) -> float:
            return sum(bench.whole[operator] * shares.get(operator, 1.0) for operator in touched)

        probed.append(name)
        for key, shares in zip(gaps, below, strict=True):
            lost[key] = lost.get(key, 0.0) + cost(at_base) - cost(shares)
            due[key] = due.get(key, 0.0) + cost(at_base) * key[1] / base
    parts = {key: lost[key] / due[key] for key in lost if due[key] > 0}
    saved = {step: max(parts[key] for key in parts if key[0] == step) for step in dict.fromkeys(s for s, _ in parts)}
    saved = dict(sorted(saved.items(), reverse=True))
    step = next((step for step, part in saved.items() if part < _UNREWARDED and step <= largest), 1)
    return Steps(step, saved, tuple(probed))


def largest_step(sizes: Sequence[int]) -> int:
    """The step that leaves the spaces of a network, half of them at least, four sizes."""
    return max(1, int(np.median(list(sizes))) // _SIZES_LEFT)


def costly(graph: ModelGraph, spaces: Sequence[Space], count: int = _PROBED) -> dict[str, int]:
    """The spaces whose halves save most multiply-accumulates, with their sizes."""
    planned = PlannedCost(graph)
    left = {space.name: planned.macs(Widths({space.dim: (space.size + 1) // 2})) for space in spaces}
    first = sorted(spaces, key=lambda space: left[space.name])[:count]
    return {space.name: space.size for space in first}


def _base(size: int) -> int:
    """A multiple of the largest step near a half; for small spaces the largest power of two that they have."""
    if size >= 2 * STEPS[0]:
        return size // 2 // STEPS[0] * STEPS[0]
    return int(2 ** np.floor(np.log2(size)))


def _sizes(size: int, step: int, levels: Sequence[float]) -> list[int]:
    """Sizes to measure: shares in multiples of the step."""
    found = {max(step, round(level * size / step) * step) for level in levels}
    return sorted(n for n in found if n < size)


def _rising(values: Sequence[float]) -> tuple[float, ...]:
    """The values closest to these that never fall, and are at most 1 (the pool-adjacent-violators algorithm)."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return tuple(min(1.0, mean) for mean, count in blocks for _ in range(int(count)))


class FileBench:
    """Cuts an `.onnx` file in place and runs it; what `CutBench` asks for.

    Args:
        file: the network as it runs.
        graph: the network that the spaces are named in; the file's own where it came from the file.
        timing: threads, batch and warm-up.
    """

    def __init__(self, file: Path | str, graph: ModelGraph, timing: Timing) -> None:
        self._imported: Imported = import_onnx(file, like=graph)
        _name_operators(self._imported.file.model)
        self._names = paired(graph, self._imported.graph)
        self._timing = timing
        self._shapes = [spec.sizes(timing.batch) for spec in graph.inputs]
        found = profile([self._model({})], timing, self._shapes, seconds=1.0)[0]
        run = measure_latency(
            {"whole": file},
            batch=timing.batch,
            threads=timing.threads,
            warmup=timing.warmup,
            runs=timing.runs,
            shapes=self._shapes,
        )["whole"]
        # Noting an operator takes time of its own, which a whole run does not have.
        noted = sum(operator.microseconds for operator in found.values())
        self._noting = max(0.0, (noted - 1e3 * run.median) / len(found))
        self.whole = {name: operator.microseconds for name, operator in quicker(found, self._noting).items()}
        self.other = max(0.0, 1e3 * run.median - noted)

    def shares(self, space: str, sizes: Sequence[int]) -> list[Shares]:
        """The operators that a space touches, at each of these sizes, against the whole network run in turn."""
        if space not in self._names:
            raise SurgeryError(f"{space}: has no counterpart in the .onnx file")
        name = self._names[space]
        models = [self._model({}), *(self._model({name: size}) for size in sizes)]
        whole, *cut = (quicker(found, self._noting) for found in profile(models, self._timing, self._shapes))
        return [shares_of(whole, part) for part in cut]

    def _model(self, sizes: Mapping[str, int]) -> onnx.ModelProto:
        graph = self._imported.graph
        if any(size < graph.space(name).size for name, size in sizes.items()):
            graph = compress(graph, sizes, importance="random")
        return edited(self._imported, graph)


def quicker(found: Profile, noting: float) -> Profile:
    """A profile without the time that noting an operator takes, in microseconds; the clock resolves a tenth."""
    return {name: replace(o, microseconds=max(_RESOLVED, o.microseconds - noting)) for name, o in found.items()}


def _name_operators(model: onnx.ModelProto) -> None:
    """Give a name of its own to every node, by which the runtime tells it from others."""
    taken: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}#{number}"
        taken.add(node.name)


def paired(graph: ModelGraph, other: ModelGraph) -> dict[str, str]:
    """Which space of another form of a network is which: by name and size; the rest by order, where the sizes agree."""
    theirs = {space.name: space.size for space in other.spaces}
    found = {space.name: space.name for space in graph.spaces if theirs.get(space.name) == space.size}
    mine = [space for space in graph.spaces if space.name not in found]
    rest = [space for space in other.spaces if space.name not in found]
    if [(s.size, s.outer) for s in mine] == [(s.size, s.outer) for s in rest]:
        found |= {a.name: b.name for a, b in zip(mine, rest, strict=True)}
    return found


def shares_of(whole: Profile, cut: Profile) -> Shares:
    """What is left of the operators whose shapes are others in a network that is cut.

    Operators that only one of them has, such as a change of layout, are counted to those that are touched.
    """
    old, new = whole, cut
    touched = [name for name in old if name in new and old[name].shapes != new[name].shapes]
    before = sum(old[name].microseconds for name in touched)
    after = sum(new[name].microseconds for name in touched)
    extra = sum(o.microseconds for name, o in new.items() if name not in old)
    extra -= sum(o.microseconds for name, o in old.items() if name not in new)
    if before <= 0 or after <= 0:
        return {}
    factor = max(0.0, (after + extra) / after)
    return {name: factor * new[name].microseconds / max(old[name].microseconds, 1e-3) for name in touched}

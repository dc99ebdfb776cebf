"""`ModelGraph`: a traced model with the types of all its axes; what passes take and return."""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

import graphsurgery.axes.rules  # noqa: F401  (fills the table of rules)
from graphsurgery.axes.algebra import Axis, Dim, resolve
from graphsurgery.axes.inference import Inference
from graphsurgery.axes.maps import Edit
from graphsurgery.axes.positions import positions
from graphsurgery.axes.types import Frozen, ParameterType, Typing
from graphsurgery.errors import SurgeryError, visible
from graphsurgery.network.copying import whole_copy
from graphsurgery.network.paths import named_tensors, place_of
from graphsurgery.network.values.evaluation import propagate


@dataclass(frozen=True)
class InputSpec:
    """One input of the model.

    Attributes:
        name: of the argument.
        shape: of the example, `[batch, ...]`.
        dtype: of the example.
        low: the smallest index or flag in the example. Numbers have no such range, but where the network makes indices
            of them.
        high: the largest.
        batched: whether its first axis is the batch; a number, and a mask for all examples, have no such axis.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    low: int = 0
    high: int = 0
    batched: bool = True

    def sizes(self, batch: int) -> tuple[int, ...]:
        """Its shape for so many examples."""
        return (batch, *self.shape[1:]) if self.batched else self.shape

    @property
    def is_noise(self) -> bool:
        """Whether any floating number will do."""
        return self.dtype.is_floating_point and self.high == 0

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """A random input `[batch, ...]` on the CPU: normal numbers, or indices in the range that was seen."""
        shape = self.sizes(batch)
        if self.is_noise:
            return torch.randn(shape, generator=generator)
        if self.dtype.is_complex:
            return torch.randn(shape, generator=generator, dtype=self.dtype)
        return torch.randint(self.low, self.high + 1, shape, generator=generator).to(self.dtype)


def draw_all(specs: Sequence[InputSpec], batch: int, generator: torch.Generator) -> list[Tensor]:
    """Random inputs of a network, each `[batch, ...]`, on the CPU.

    Indices without a batch that may number rows of other inputs, as edges `[2, edges]` do nodes, stay below `batch`.
    """
    traced = next((spec.shape[0] for spec in specs if spec.batched), 1)
    return [(_below(spec, batch) if _numbers_rows(spec, traced) else spec).draw(batch, generator) for spec in specs]


def _numbers_rows(spec: InputSpec, batch: int) -> bool:
    """Whether every index was one of the rows of a batch, and they are not flags, or one list for all examples."""
    indices = not (spec.dtype.is_floating_point or spec.dtype.is_complex or spec.dtype == torch.bool)
    return indices and not spec.batched and spec.shape[:1] not in ((), (1,)) and 1 < spec.high < batch


def _below(spec: InputSpec, limit: int) -> InputSpec:
    return replace(spec, low=min(spec.low, limit - 1), high=min(spec.high, limit - 1))


def have_batch(shapes: Sequence[Sequence[int]]) -> list[bool]:
    """Which inputs of these shapes have the batch as their first axis: as many examples as the first that has several.

    A number has none, nor has a mask `[1, tokens, tokens]` or `[tokens, tokens]` beside a batch of another size.
    """
    firsts = [shape[0] for shape in shapes if shape]
    batch = next((size for size in firsts if size > 1), 1)
    return [bool(shape) and shape[0] == batch for shape in shapes]


@dataclass(frozen=True)
class Space:
    """A set of channels that must change together.

    Attributes:
        name: the first node that writes it; a number is added where that node writes several spaces.
        size: number of channels.
        writers: nodes whose parameters write it.
        readers: nodes that sum over it.
        outer: whether it is never inside another space (head sizes are inside heads); a ratio applies to outer spaces.
        scalable: whether every reader has a weight that a factor can be folded into.
        mixed: operators that mix its channels without parameters, so that a cut changes more than the reads.
        dim: its dim in the types.
        positions: why each of its channels has a meaning of its own, such as bins that a fixed vector reads; empty of
            ordinary channels. What is chosen by a share, a target or a search leaves such a space whole.
    """

    name: str
    size: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    outer: bool
    scalable: bool
    mixed: tuple[str, ...]
    dim: Dim = field(repr=False, compare=False)
    positions: str = ""

    @property
    def chosen(self) -> bool:
        """Whether a share, a target or a search may change it without its name being given."""
        return self.outer and not self.positions


@dataclass(frozen=True, eq=False)
class Origin:
    """How a network was made from another one, for what has to go the same way as its weights.

    Attributes:
        module: the network before, while it exists.
        before: how that one was made.
        parameters: the types of its parameters and buffers.
        canonical: the first name of each of them by every name.
        spaces: the names of its spaces by their dims.
        folded: the axes of its parameters that the shares of the edit are folded into, with what they read.
        edit: what was done to its spaces.
    """

    module: weakref.ref[fx.GraphModule]
    before: Origin | None
    parameters: Mapping[str, ParameterType]
    canonical: Mapping[str, str]
    spaces: Mapping[Dim, str]
    folded: Mapping[str, Mapping[int, Axis]]
    edit: Edit


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """A network in normal form, with the types of all its axes.

    Attributes:
        module: the network; an ordinary `nn.Module` to run, train, move and cast.
        inputs: what the network takes; the first axis of an input is the batch where it says so.
        lineage: JSON-like records of how this network came to be, oldest first.
        open_outputs: whether the axes of the outputs (classes) count as channels too.
        origin: how the last edit made it, in this process; it is not stored.
    """

    module: fx.GraphModule
    inputs: tuple[InputSpec, ...]
    lineage: tuple[Mapping[str, Any], ...] = field(default=())
    open_outputs: bool = False
    origin: Origin | None = field(default=None, repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __repr__(self) -> str:
        """At most ten lines: what it takes, how large it is, its spaces, what is frozen, and what was done to it."""
        return "\n".join(line if len(line) <= 100 else f"{line[:99]}…" for line in _summary(self))

    @property
    def batch(self) -> int:
        """How many examples the network was traced with."""
        return next((spec.shape[0] for spec in self.inputs if spec.batched), 1)

    @cached_property
    def types(self) -> Typing:
        """The types of all nodes and parameters; inferred once."""
        if any("value" not in node.meta for node in self.module.graph.nodes):
            propagate(self.module, [torch.empty(s.shape, dtype=s.dtype, device="meta") for s in self.inputs])
        return Inference(self.module, open_outputs=self.open_outputs).run()

    @cached_property
    def spaces(self) -> tuple[Space, ...]:
        """The sets of channels that must change together, in the order in which they are written."""
        return tuple(_spaces(self.types))

    @cached_property
    def uses(self) -> Mapping[Dim, list[tuple[str, int, Axis]]]:
        """Where each free dim stands: parameter or buffer, number of the axis, and the axis."""
        found: dict[Dim, list[tuple[str, int, Axis]]] = {}
        for name, typed in self.types.parameters.items():
            for index, axis in enumerate(typed.axes):
                resolved = resolve(axis)
                for dim in dict.fromkeys(d for term in resolved for d in term if not d.fixed):
                    found.setdefault(dim, []).append((name, index, resolved))
        return found

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """The nodes around which axes may not change, with the reason; network inputs and outputs go without saying."""
        return self.types.frozen

    def space(self, name: str) -> Space:
        """The space of this name.

        Raises:
            SurgeryError: there is none; the message has the nearest names.
        """
        for space in self.spaces:
            if space.name == name:
                return space
        written = [space.name for space in self.spaces if name in space.writers]
        if written:
            raise SurgeryError(f"{name} is not a space of this model; it writes {', '.join(written)}")
        near = difflib.get_close_matches(name, [s.name for s in self.spaces], 3, 0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {len(self.spaces)} spaces; see inspect"
        raise SurgeryError(f"{name} is not a space of this model; {hint}")

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, as they are now."""
        return named_tensors(self.module)

    def check_values(self, what: str) -> None:
        """Refuse to look at weights that have no values, as those of a network that was built on the meta device.

        Args:
            what: wants to look at them.

        Raises:
            SurgeryError: one has none; the message names it.
        """
        without = next((name for name, tensor in self.tensors().items() if tensor.is_meta), None)
        if without is not None:
            raise SurgeryError(f"{what}: looks at the weights, and {without} has no values (it is on the meta device)")

    def copy(self) -> ModelGraph:
        """The same network with tensors of its own."""
        return replace(self, module=whole_copy(self.module))

    def example_inputs(self, batch: int = 2, *, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs `[batch, ...]` in the dtype and on the device of the network's parameters."""
        generator = torch.Generator().manual_seed(seed)
        reference = next((p for p in self.module.parameters() if p.is_floating_point()), torch.empty(0))
        drawn = draw_all(self.inputs, batch, generator)
        return tuple(t.to(reference) if t.is_floating_point() else t.to(reference.device) for t in drawn)


def _summary(graph: ModelGraph) -> Iterator[str]:
    count, large = len(graph.spaces), sorted(graph.spaces, key=lambda space: -space.size)[:4]
    yield f"ModelGraph of {len(graph.module.graph.nodes)} nodes"
    for spec in graph.inputs[:2]:
        shape = ["batch", *spec.shape[1:]] if spec.batched else list(spec.shape)
        yield f"  input   {visible(spec.name)} {shape} {spec.dtype}".replace("'", "")
    if len(graph.inputs) > 2:
        yield f"          … {len(graph.inputs) - 2} more inputs"
    tensors = graph.tensors().values()
    size = sum(t.numel() * t.element_size() for t in tensors)
    yield f"  weights {sum(p.numel() for p in graph.module.parameters()):,} parameters, {size:,} bytes with buffers"
    named = "".join(f", {visible(space.name)} ({space.size})" for space in large)
    yield f"  spaces  {count}{named}" + ", …" * (count > len(large))
    yield f"  frozen  {len(graph.frozen)} nodes" + "".join(f"; {visible(f.node)}: {f.reason}" for f in graph.frozen[:1])
    yield f"  made by {', '.join(str(record.get('pass')) for record in graph.lineage[-9:]) or 'hand'}"


def _spaces(types: Typing) -> Iterator[Space]:
    writers = _by_dim((a.axis, place_of(a.node)) for a in types.writers)
    owners = _by_dim(
        (axis, typed.name.rpartition(".")[0] or typed.name)
        for typed in types.parameters.values()
        for axis in typed.axes
    )
    readers = _by_dim((a.axis, place_of(a.node)) for a in types.readers)
    mixed = _by_dim((m.axis, f"{m.kind} at {place_of(m.node)}") for m in types.mixings)
    bare = _by_dim((a.axis, a.node.name) for a in types.readers if not a.weighted)
    inner, meaning = _inner_dims(types), positions(types)
    names: dict[str, int] = {}
    for dim in (*writers, *(d for d in owners if d not in writers)):
        if dim not in owners:
            continue
        written = tuple(writers.get(dim, owners[dim]))
        names[written[0]] = names.get(written[0], 0) + 1
        count = names[written[0]]
        yield Space(
            name=written[0] if count == 1 else f"{written[0]}:{count}",
            size=dim.size,
            writers=written,
            readers=tuple(readers.get(dim, ())),
            outer=dim not in inner,
            scalable=dim not in bare,
            mixed=tuple(mixed.get(dim, ())),
            dim=dim,
            positions=meaning.get(dim, ""),
        )


def _by_dim(pairs: Any) -> dict[Dim, dict[str, None]]:
    """The free dims of axes, with the names that go with each, in order of appearance."""
    found: dict[Dim, dict[str, None]] = {}
    for axis, name in pairs:
        for term in resolve(axis):
            for dim in term:
                if not dim.fixed:
                    found.setdefault(dim, {})[name] = None
    return found


def _inner_dims(types: Typing) -> set[Dim]:
    """The free dims that stand inside an outer one; of two that stand inside each other the first is the outer one."""
    around: dict[Dim, set[Dim]] = {}
    for axis in types.axes():
        for term in resolve(axis):
            free = [dim for dim in term if not dim.fixed]
            for position, dim in enumerate(free):
                around.setdefault(dim, set()).update(free[:position])
    outer = {dim for dim, outside in around.items() if not outside}
    for dim, outside in around.items():
        if dim not in outside and outer.isdisjoint(_reached(outside, around)):
            outer.add(dim)
    return set(around) - outer


def _reached(start: set[Dim], steps: Mapping[Dim, set[Dim]]) -> set[Dim]:
    """Everything that can be reached from these dims, themselves included."""
    found, waiting = set(start), list(start)
    while waiting:
        more = steps[waiting.pop()] - found
        found |= more
        waiting.extend(more)
    return found

"""What edits promise, measured on the very network that is to be written, a layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx

from graphsurgery.axes.algebra import Axis, Dim
from graphsurgery.axes.maps import ChannelMap, Edit, MapInGroups
from graphsurgery.axes.types import Access, TensorType, is_inside
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.copying import deep_copy
from graphsurgery.network.layers import weigh
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.network.outputs.naming import run
from graphsurgery.progress import phase
from graphsurgery.recipes.outcome import Check
from graphsurgery.surgery.deviation import InDouble, apart, changed_by, mean_of
from graphsurgery.surgery.gates import bare
from graphsurgery.surgery.masks.mask_set import MaskSet

EXACT, ROUNDED, AS_IT_IS = 1e-10, 1e-5, 1e-3
"""The largest relative deviations: in float64, with gates folded into weights of less, and of networks that insist on a
precision of their own."""

BLURRED = 1e-3
"""The most that rounding may excuse of a network that enlarges it."""

_ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-6}
"""The largest relative change of the outputs, by the precision of the weights, into which shares are rounded."""

_Outputs = Callable[..., Any]


@dataclass(frozen=True)
class CutCheck:
    """The contract of a cut.

    Attributes:
        check: how far it lies from the original with masked reads; None where no equality is promised.
        deviation: the same number.
        why: what mixes the channels that were cut, so that no equality is promised; else empty.
    """

    check: Check | None
    deviation: float
    why: str = ""


@phase("checking the cut")
def check_cut(before: ModelGraph, small: ModelGraph, seed: int = 0) -> CutCheck:
    """Compare a cut network with the original whose reads of the removed channels are 0, on random inputs.

    The layers are taken to float64 one at a time, so it needs no second copy of either network. Removed channels are
    masked where they are read, element by element; gates count as they do in evaluation.

    Args:
        before: the network before; it may have gates.
        small: what `compress` made of it, in this process, unchanged since.
        seed: of the inputs.

    Raises:
        SurgeryError: the second was not cut from a network like the first.
        UnlikeError: they do not give the same outputs at all.
    """
    base = bare(before)
    edit, mixed = _edit(base, small)
    x = before.example_inputs(before.batch, seed=seed)  # the types know this batch
    scaled = any(known.share is not None for known in edit.maps.values())
    masked: _Outputs = _InDouble(base, edit)
    try:
        expected = run(masked, x, seed)
        found = run(InDouble(small), x, seed)
        allowed = EXACT if not scaled or _is_double(base) else ROUNDED
    except RuntimeError:  # such as a cast to float32 in the middle
        masked = _AsItIs(base, edit)
        expected, found = run(masked, x, seed), run(_AsItIs(small, Edit({})), x, seed)
        allowed = AS_IT_IS
    deviation = _apart(found, expected)
    if mixed:
        return CutCheck(None, deviation, mixed)
    if deviation > allowed:
        allowed = max(allowed, min(10 * _rounding(masked, x, expected, seed), BLURRED))
    return CutCheck(Check("cut = reads masked", deviation, allowed), deviation)


def unchanged(name: str, before: ModelGraph, after: ModelGraph, seed: int = 0) -> Check:
    """The contract of this name: the same outputs, to what the precision of the weights allows."""
    return Check(name, changed_by(before, after, seed), _allowed(before))


def check_mean(parents: Sequence[ModelGraph], both: ModelGraph, seed: int = 0) -> Check:
    """Compare a direct sum with the mean of its networks' outputs, on random inputs, in float64.

    Args:
        parents: the networks, of one topology.
        both: what `concatenate` made of them.
        seed: of the inputs.

    Raises:
        UnlikeError: they do not give the same outputs at all.
    """
    x = both.example_inputs(4, seed=seed)
    single = [run(InDouble(parent), x, seed) for parent in parents]
    mean = {name: mean_of([outputs[name] for outputs in single]) for name in single[0]}
    return Check("concatenated = mean of the parents", _apart(run(InDouble(both), x, seed), mean), _allowed(both))


def _allowed(graph: ModelGraph) -> float:
    dtype = next((p.dtype for p in graph.module.parameters() if p.is_floating_point()), torch.float32)
    return _ALLOWED.get(dtype, 1e-2)


def check_masked(before: ModelGraph, after: ModelGraph, masks: MaskSet, seed: int = 0) -> Check:
    """Compare a masked network with the original whose dead weights are taken for 0, on random inputs, in float64.

    Args:
        before: the network before.
        after: what `mask` made of it.
        masks: which weights live.
        seed: of the inputs.
    """
    x = before.example_inputs(2, seed=seed)
    deviation = _apart(run(InDouble(after), x, seed), run(_Zeroed(before, masks), x, seed))
    return Check("masked = weights zeroed", deviation, 1e-12)


def _edit(base: ModelGraph, small: ModelGraph) -> tuple[Edit, str]:
    """What was done to the spaces, and what mixes channels of those that were cut."""
    origin = small.origin
    if origin is None:
        raise SurgeryError("check of a cut: the network was not cut in this process")
    spaces = {name: base.space(name) for dim, name in origin.spaces.items() if dim in origin.edit.maps}
    dims = {dim: base.space(name).dim for dim, name in origin.spaces.items()}
    maps = {dims[dim]: _of_these(known, dims) for dim, known in origin.edit.maps.items()}
    cut = [space for space in spaces.values() if len(maps[space.dim]) < space.size]
    kinds = sorted({word.partition(" at ")[0] for space in cut for word in space.mixed})
    count = sum(bool(space.mixed) for space in cut)
    return Edit(maps), f"{count} of {len(cut)} cut spaces are mixed by {', '.join(kinds)}" if kinds else ""


def _of_these(known: ChannelMap | MapInGroups, dims: Mapping[Dim, Dim]) -> ChannelMap | MapInGroups:
    """A map over the dims of another typing of the same network."""
    if isinstance(known, ChannelMap):
        return known
    return MapInGroups({dims.get(outer, outer): source for outer, source in known.sources.items()})


def _is_double(graph: ModelGraph) -> bool:
    return all(p.dtype == torch.float64 for p in graph.module.parameters() if p.is_floating_point())


def _apart(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The relative deviation; an infinity or a NaN is equal to its like."""
    cleaned: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, tensor in found.items():
        other = expected.get(name, tensor)
        alike = (
            ~torch.isfinite(other) & (tensor.isnan() & other.isnan() | (tensor == other))
            if (tensor.shape == other.shape)
            else None
        )
        for clean, value in zip(cleaned, (tensor, other), strict=True):
            clean[name] = value if alike is None else value.masked_fill(alike, 0)
    return apart(cleaned[0], {**expected, **cleaned[1]})


def _rounding(masked: _Outputs, x: Sequence[Tensor], expected: Mapping[str, Tensor], seed: int) -> float:
    """How far the outputs move when the inputs are rounded: a saturated softmax enlarges that."""
    generator = torch.Generator().manual_seed(seed)
    moved = []
    for tensor in x:
        if tensor.is_floating_point():
            step = torch.finfo(torch.float64).eps * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor = tensor.double() * (1 + step.to(tensor.device))
        moved.append(tensor)
    return _apart(run(masked, moved, seed), expected)


class _Masks:
    """What stands in for the values that are read of spaces that an edit cuts."""

    def __init__(self, graph: ModelGraph, edit: Edit) -> None:
        self.edit = edit
        self.reads: dict[fx.Node, list[tuple[Access, TensorType]]] = {}
        self.inside: dict[str, dict[str, tuple[Access, TensorType]]] = {}
        if not edit.maps:
            return
        types = graph.types
        for access in types.readers:
            typed = types.types[access.value] if access.value is not None else None
            if isinstance(typed, TensorType):
                known = self.reads.setdefault(access.node, [])
                # Two weights that read one value, as both directions of a recurrent layer do, are one place of factors.
                if not any((other.value, other.dim) == (access.value, access.dim) for other, _ in known):
                    known.append((access, typed))
            elif is_inside(access):
                name, axis = cast("tuple[str, int]", access.weight)
                own = (replace(access, dim=axis), TensorType(types.parameters[name].axes))
                self.inside.setdefault(str(access.node.target), {}).update(dict.fromkeys(types.names_of(access), own))

    def of(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """The values that a node reads, without what is cut."""
        found: dict[fx.Node, Any] = {}
        for access, typed in self.reads.get(node, ()):
            assert access.value is not None
            value = found.get(access.value, values[access.value])
            found[access.value] = _masked(value, typed.axes, access, self.edit)
        return found

    def layer(self, path: str, layer: Any) -> Any:
        """A layer without what it reads of itself that is cut."""
        if path not in self.inside:
            return layer
        layer = deep_copy(layer)
        with torch.no_grad():
            for name, (access, typed) in self.inside[path].items():
                weight = getattr(layer, name)
                weight.copy_(_masked(weight, typed.axes, access, self.edit))
        return layer


def _masked(value: Tensor, axes: Sequence[Axis], access: Access, edit: Edit) -> Tensor:
    """A value that is read, with 0 for what is cut, and by the shares of what stays."""
    lifted = edit.lift_in(axes, access.dim)
    if lifted is None:
        return value
    size = value.shape[access.dim]
    if lifted.beside is not None:
        beside = edit.lift(axes[lifted.beside])
        rows = torch.arange(len(lifted.source)) if beside is None else beside.source
        mask = torch.zeros(value.shape[lifted.beside], size, dtype=torch.float64)
        mask[rows[:, None], lifted.source] = 1
        mask = mask if lifted.beside < access.dim else mask.t()
        places = (lifted.beside, access.dim)
        return value * mask.reshape([n if axis in places else 1 for axis, n in enumerate(value.shape)]).to(value)
    share = edit.share(access.axis)
    count = len(lifted.source)
    factors = torch.zeros(size, dtype=torch.float64)
    factors[lifted.source] = torch.ones(count).double() if share is None else share.repeat(count // len(share))
    return weigh(value, access.dim, factors.to(value))


class _Masking(fx.Interpreter):
    """Runs a network with masked reads."""

    masks: _Masks

    def run_node(self, n: fx.Node) -> Any:
        read = self.masks.of(n, self.env)
        whole = {value: self.env[value] for value in read}
        self.env.update(read)
        result = super().run_node(n)
        self.env.update(whole)
        return result

    def fetch_attr(self, target: str) -> Any:
        return self.masks.layer(target, super().fetch_attr(target))


class _InDouble(_Masking, InDouble):
    """In float64, layer by layer."""

    def __init__(self, graph: ModelGraph, edit: Edit) -> None:
        super().__init__(graph)
        self.masks = _Masks(graph, edit)


class _Zeroed(InDouble):
    """In float64, layer by layer, with 0 for dead weights."""

    def __init__(self, graph: ModelGraph, masks: MaskSet) -> None:
        super().__init__(graph)
        canonical = graph.types.canonical
        self.masks = {name: masks[first] for name, first in canonical.items() if first in masks}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = deep_copy(self.fetch_attr(str(target))).cpu().double().eval()
        with torch.no_grad():
            for name, parameter in layer.named_parameters(remove_duplicate=False):
                path = f"{target}.{name}"
                if path in self.masks:
                    parameter.masked_fill_(~self.masks[path], 0)
        return layer(*args, **kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.masked_fill(~self.masks[target], 0) if target in self.masks else value


class _AsItIs(_Masking):
    """In its own precision, in evaluation mode."""

    def __init__(self, graph: ModelGraph, edit: Edit) -> None:
        super().__init__(graph.module)
        self.masks = _Masks(graph, edit)

    def __call__(self, *inputs: Tensor) -> Any:
        with evaluating(self.module):
            return self.run(*inputs)

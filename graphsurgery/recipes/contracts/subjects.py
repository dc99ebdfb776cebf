"""The copies that contracts are measured on: with values that hide nothing, and of a size that memory allows."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from graphsurgery.axes.algebra import dims_of
from graphsurgery.errors import UnsupportedError
from graphsurgery.graph import InputSpec, ModelGraph, draw_all
from graphsurgery.network.copying import alias_copy, meta_of
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.network.outputs.strips import ConvolutionsInStrips
from graphsurgery.passes.compress import compress
from graphsurgery.surgery.masks.dead_channels import labels
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable

_LARGEST_GAIN = 2.0

Network = TypeVar("Network", bound=nn.Module)


def draw_inputs(specs: Sequence[InputSpec], batch: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Random inputs `[batch, ...]` on the CPU; floating ones in `dtype`, and indices in the range that was seen."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in draw_all(specs, batch, generator))


def light_copy(module: Network) -> Network:
    """A copy with parameters of its own on the same memory, and with buffers of its own.

    `randomize` and a cast give a parameter new memory, so the original keeps its values.
    """
    return cast(Network, alias_copy(module)[0])


def skeleton(module: Network) -> Network:
    """A copy whose parameters hold no values (meta tensors); its buffers, such as tables of indices, keep theirs."""
    memo = {id(p): nn.Parameter(meta_of(p), requires_grad=p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def has_values(module: nn.Module) -> bool:
    """Whether no parameter and no buffer is a meta tensor."""
    return not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def narrow(graph: ModelGraph, share: float, seed: int) -> ModelGraph:
    """A network of the same structure with this share of every space, filled with random values.

    Only meta tensors are cut, so that the memory which it takes is that of the small network. Two channels are left
    where there are two: one head alone would be another structure.

    Raises:
        SurgeryError: nothing can be cut, or the network holds buffers without values.
    """
    without_values = replace(graph, module=skeleton(graph.module))
    outer = (space for space in graph.spaces if space.chosen)
    sizes = {space.name: max(round(share * space.size), min(2, space.size)) for space in outer}
    small = compress(without_values, sizes or share, importance="random", seed=seed)
    fill(small.module, seed)
    return small


def fill(module: nn.Module, seed: int) -> None:
    """Give random values to every parameter that is a meta tensor, in place, at the scale of a fresh network.

    Raises:
        UnsupportedError: a buffer is a meta tensor: what it should hold cannot be drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    new: dict[int, nn.Parameter] = {}
    for path, owner in module.named_modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_meta:
                raise UnsupportedError(
                    f"buffer {path}.{name} holds no values; build the network with its parameters alone on meta, as "
                    "accelerate.init_empty_weights does"
                )
        for name, parameter in owner._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in new:
                scale = 1 / math.sqrt(_fan_in(parameter))
                value = scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                new[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
            owner._parameters[name] = new[id(parameter)]


def randomize(module: nn.Module, seed: int) -> None:
    """Draw what would hide a mistake or blow one up, in place: norms, and weights far from the scale of their reads.

    Fresh networks have norms that do nothing, biases of 0 and layer scales of 1e-6, behind which a mistake is not seen,
    and squeezing weights so large that rounding alone is. What is drawn gets new memory, so that a network which shares
    its own (`light_copy`) keeps its values.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in _floating(module):
        leaf = name.rpartition(".")[2]
        if leaf == "running_mean":
            tensor.data = 0.3 * _normal(tensor, generator)
        elif leaf == "running_var" or (leaf == "weight" and tensor.dim() == 1):
            tensor.data = torch.rand(tensor.shape, generator=generator).to(tensor) + 0.5
        elif isinstance(tensor, nn.Parameter):
            if float(tensor.detach().abs().max()) < 1e-3:
                tensor.data = _normal(tensor, generator) / math.sqrt(_fan_in(tensor))
            elif tensor.dim() > 1 and (gain := _spread(tensor) * math.sqrt(_fan_in(tensor))) > _LARGEST_GAIN:
                tensor.data = tensor.data / gain


def redraw(module: nn.Module, seed: int) -> None:
    """Draw every parameter anew, with the mean and the spread that its values have; in place."""
    generator = torch.Generator().manual_seed(seed)
    for _, tensor in _floating(module):
        if isinstance(tensor, nn.Parameter):
            spread = _spread(tensor) or float(tensor.detach().abs().mean())
            tensor.data = tensor.data.mean() + spread * _normal(tensor, generator)


def holes(graph: ModelGraph, seed: int) -> MaskSet:
    """Random masks with dead channels: in every space a quarter is written by no weight, and a quarter read by none.

    Of the other weights 30 % are dead.
    """
    generator = torch.Generator().manual_seed(seed)
    weights, types = maskable(graph), graph.types.parameters
    masks = {name: torch.rand(weight.shape, generator=generator) < 0.7 for name, weight in weights.items()}
    for space in graph.spaces:
        quarter = space.size // 4
        unwritten, unread, _ = torch.randperm(space.size, generator=generator).tensor_split([quarter, 2 * quarter])
        for name, index, axis in graph.uses[space.dim]:
            label = labels(axis, space.dim) if name in masks else None
            if label is not None:
                read = space.dim in dims_of(types[name].reads.get(index, ()))
                dead = torch.isin(label, unread if read else unwritten)
                masks[name].movedim(index, 0)[dead] = False
    return MaskSet(masks)


def calibrate(module: nn.Module, specs: Sequence[InputSpec], dtype: torch.dtype, seed: int) -> None:
    """Give every BatchNorm about the statistics of a random batch, in place, and none exactly.

    Without it the signal fades in a deep network until its outputs are the same for every input, whatever its layers
    do. All other layers evaluate meanwhile. A network that does not take such inputs stays as it is.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    quiet = contextlib.suppress(Exception)  # who measures it will see
    with evaluating(module), torch.no_grad(), ConvolutionsInStrips(), quiet:
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        module(*draw_inputs(specs, _calibrating_batch(specs), seed + 1, dtype))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        _settle(norm, torch.Generator().manual_seed(seed))


def _calibrating_batch(specs: Sequence[InputSpec]) -> int:
    """Examples enough that the deepest norms see more than a handful of positions, and no more than time allows."""
    positions = max((math.prod(spec.shape[2:]) for spec in specs if spec.batched), default=1)
    return min(32, max(4, 32 * 64 * 64 // positions))


def _settle(norm: nn.modules.batchnorm._BatchNorm, generator: torch.Generator) -> None:
    """Disturb the statistics a little, and raise those of channels that hardly moved, which would blow up rounding."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is not None and variance is not None:
        variance.clamp_(min=0.1 * float(variance.mean()))
        mean.add_(0.02 * variance.sqrt() * _normal(mean, generator))
        variance.mul_(1 + 0.02 * _normal(variance, generator).clamp(-2, 2))


def _spread(tensor: Tensor) -> float:
    """Standard deviation of the values; 0 of a single one."""
    return float(tensor.detach().std()) if tensor.numel() > 1 else 0.0


def _floating(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.numel():
            yield name, tensor


def _normal(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)


def _fan_in(tensor: Tensor) -> int:
    return max(1, tensor[0].numel()) if tensor.dim() > 1 else 10

"""One set of weights at any width: a narrower network has the leading channels of every space, as views.

A width is a share of every space, or a number of channels for single ones. The network at a width is what `compress`
leaves when it keeps the first channels; here its parameters are slices of the whole network's, so that gradients reach
the one set of weights. An index is gathered only where the channels of an axis do not lie together.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from graphsurgery.copying import meta_of
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.maps import ChannelMap, Edit
from graphsurgery.passes.gate import has_gates, why_nothing
from graphsurgery.remap import gather, rebuild, remap

Width = float | Mapping[str, float | int]
Slice = slice | Tensor


class Slimmable:
    """A network that runs at any width.

    Args:
        graph: the whole network; its weights are the ones that all widths share.
        minimum: the smallest share of a space.
        divisor: numbers of channels become multiples of this where the space has as many, and never less than 90 % of
            what was asked for.

    Raises:
        SurgeryError: no space can be slimmed, or a setting is out of range.

    Source: Yu & Huang, "Universally slimmable networks", ICCV 2019, arXiv:1903.05134.
    """

    def __init__(self, graph: ModelGraph, *, minimum: float = 0.25, divisor: int = 1) -> None:
        if has_gates(graph):
            raise SurgeryError("slim: this network has gates; fold or compress it first")
        if not 0 < minimum <= 1:
            raise SurgeryError(f"slim: the smallest width is {minimum:g}, expected a share above 0 and at most 1")
        if divisor < 1:
            raise SurgeryError(f"slim: divisor is {divisor}, expected at least 1")
        self.graph, self.minimum, self.divisor = graph, minimum, divisor
        self.spaces = {space.name: space for space in graph.spaces if space.outer}
        if not self.spaces:
            raise SurgeryError(f"slim: no space can be slimmed; {why_nothing(graph)}")
        self._narrow: dict[tuple[int, ...], Narrow] = {}

    def sizes(self, width: Width) -> dict[str, int]:
        """The number of channels of every space at a width.

        Raises:
            SurgeryError: a width outside the range, or an unknown space.
        """
        if not isinstance(width, Mapping):
            self._check("the width", width)
            return {name: self._rounded(space, width) for name, space in self.spaces.items()}
        sizes = {name: space.size for name, space in self.spaces.items()}
        for name, asked in width.items():
            space = self.graph.space(name)
            if name not in self.spaces:
                raise SurgeryError(f"slim: space {name} stands inside another one and keeps its size")
            if isinstance(asked, int) and not isinstance(asked, bool):
                if not 1 <= asked <= space.size:
                    raise SurgeryError(f"slim: space {name} has {space.size} channels, cannot have {asked}")
                sizes[name] = asked
            else:
                self._check(f"the width of space {name}", asked)
                sizes[name] = self._rounded(space, asked)
        return sizes

    def _check(self, what: str, width: float) -> None:
        if not self.minimum <= width <= 1:
            raise SurgeryError(f"slim: {what} is {width:g}, expected {self.minimum:g} to 1")

    def _rounded(self, space: Space, width: float) -> int:
        """As `make_divisible` of the paper's code."""
        wanted = width * space.size
        size = max(self.divisor, int(wanted + self.divisor / 2) // self.divisor * self.divisor)
        return min(space.size, size if size >= 0.9 * wanted else size + self.divisor)

    def at(self, width: Width) -> Narrow:
        """The network at a width, on the shared weights; made once for each configuration."""
        sizes = self.sizes(width)
        key = tuple(sizes.values())
        if key not in self._narrow:
            self._narrow[key] = Narrow(self.graph, self._maps(sizes))
        return self._narrow[key]

    def extract(self, width: Width) -> ModelGraph:
        """The network at a width, with weights of its own; its statistics are the leading ones of the whole network."""
        sizes = self.sizes(width)
        record = {"pass": "slim", "width": key_of(sizes), "sizes": sizes}
        return remap(self.graph, self._maps(sizes), record)

    def _maps(self, sizes: Mapping[str, int]) -> dict[Any, ChannelMap]:
        return {self.spaces[name].dim: ChannelMap(torch.arange(size)) for name, size in sizes.items()}


class Narrow:
    """A narrower network over the weights of a whole one.

    Attributes:
        module: its graph; its parameters have no values, its buffers are its own.
    """

    def __init__(self, graph: ModelGraph, maps: Mapping[Any, ChannelMap]) -> None:
        edit = Edit(maps)
        self._whole = graph.module
        self.module = rebuild(graph, edit, lambda typed, tensor: gather(edit, typed, tensor, ())).module
        types = graph.types
        self._slices: dict[str, tuple[Slice, ...]] = {}
        for name, parameter in list(self.module.named_parameters(remove_duplicate=False)):
            typed = types.parameters.get(types.canonical[name])
            self._slices[name] = () if typed is None else tuple(_slice(edit, axis) for axis in typed.axes)
            owner, _, own = name.rpartition(".")
            empty = nn.Parameter(meta_of(parameter), requires_grad=False)
            self.module.get_submodule(owner)._parameters[own] = empty

    def parameters(self) -> dict[str, Tensor]:
        """Views of the shared weights, by name."""
        whole = dict(self._whole.named_parameters(remove_duplicate=False))
        return {name: _view(whole[name], slices) for name, slices in self._slices.items()}

    def __call__(self, *inputs: Tensor) -> Any:
        """What the network gives; in the mode that the whole network is in."""
        self.module.train(self._whole.training)
        return functional_call(self.module, self.parameters(), inputs)


def _slice(edit: Edit, axis: Any) -> Slice:
    """What an axis keeps: its first indices, or some of them."""
    lifted = edit.lift(axis)
    if lifted is None:
        return slice(None)
    source = lifted.source
    leading = bool((source == torch.arange(len(source))).all())
    return slice(0, len(source)) if leading else source


def _view(tensor: Tensor, slices: Sequence[Slice]) -> Tensor:
    """A part of a tensor; a view where all of its axes are slices."""
    for index, part in enumerate(slices):
        if isinstance(part, Tensor):
            tensor = tensor.index_select(index, part.to(tensor.device))
        elif part.stop is not None and part.stop < tensor.shape[index]:
            tensor = tensor.narrow(index, 0, part.stop)
    return tensor


def key_of(sizes: Mapping[str, int]) -> str:
    """A text that names a configuration, for files."""
    return ",".join(f"{name}={size}" for name, size in sizes.items())


def pack_statistics(module: nn.Module) -> dict[str, str]:
    """The running statistics of every BatchNorm, as text that JSON takes."""
    return {
        f"{path}.{kind}": base64.b64encode(getattr(norm, kind).detach().double().cpu().numpy().tobytes()).decode()
        for path, norm in _norms(module).items()
        for kind in ("running_mean", "running_var")
    }


def unpack_statistics(module: nn.Module, packed: Mapping[str, str]) -> None:
    """Give every BatchNorm the statistics that `pack_statistics` gave, in place.

    Raises:
        SurgeryError: they belong to another network.
    """
    for path, norm in _norms(module).items():
        for kind in ("running_mean", "running_var"):
            buffer = getattr(norm, kind)
            try:
                values = torch.frombuffer(bytearray(base64.b64decode(packed[f"{path}.{kind}"])), dtype=torch.float64)
                buffer.copy_(values.reshape(buffer.shape))
            except (KeyError, ValueError, RuntimeError) as cause:
                raise SurgeryError(f"slim: the stored statistics do not fit {path}.{kind}") from cause


def _norms(module: nn.Module) -> dict[str, _BatchNorm]:
    return {
        path: part
        for path, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    }

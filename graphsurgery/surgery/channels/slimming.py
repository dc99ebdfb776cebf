"""One set of weights at any width: a narrower network has the leading channels of every space, as views.

A width is a share of every space, or a number of channels for single ones. The network at a width is what `compress`
leaves when it keeps the first channels; here its parameters are slices of the whole network's, so that gradients reach
the one set of weights. An index is gathered only where the channels of an axis do not lie together.

BatchNorms are shared too, and a width finds statistics of its own after the training; or the widths of a list have
BatchNorms of their own, with statistics and affine values, and there are no other widths (`switchable`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphsurgery.axes.maps import ChannelMap, Edit
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Space
from graphsurgery.network.copying import meta_of
from graphsurgery.surgery.gates import has_gates, why_nothing
from graphsurgery.surgery.remapping.gathering import gather
from graphsurgery.surgery.remapping.remap import rebuild, remap

Width = float | Mapping[str, float | int]
Slice = slice | Tensor


class Slimmable:
    """A network that runs at any width.

    Args:
        graph: the whole network; its weights are the ones that all widths share.
        min_width: the smallest share of a space.
        round_to: numbers of channels become multiples of this where the space has as many, and never less than 90 % of
            what was asked for.
        switchable: the only widths that there are besides the whole one, each with BatchNorms of its own, which begin
            as the leading channels of the whole network's; none: any width, and shared BatchNorms.

    Raises:
        SurgeryError: no space can be slimmed, a setting is out of range, or there are no BatchNorms to switch.

    Source: Yu & Huang, "Universally slimmable networks", ICCV 2019, arXiv:1903.05134; switchable BatchNorm: Yu et al.,
    "Slimmable neural networks", ICLR 2019, arXiv:1812.08928, section 3.3.
    """

    def __init__(
        self, graph: ModelGraph, *, min_width: float = 0.25, round_to: int = 1, switchable: Sequence[float] = ()
    ) -> None:
        if has_gates(graph):
            raise SurgeryError("slim: this network has gates; fold or compress it first")
        if not 0 < min_width <= 1:
            raise SurgeryError(f"slim: the smallest width is {min_width:g}, expected a share above 0 and at most 1")
        if round_to < 1:
            raise SurgeryError(f"slim: round_to is {round_to}, expected at least 1")
        self.graph, self.min_width, self.round_to = graph, min_width, round_to
        self.spaces = {space.name: space for space in graph.spaces if space.chosen}
        if not self.spaces:
            raise SurgeryError(f"slim: no space can be slimmed; {why_nothing(graph)}")
        self._narrow: dict[str, Narrow] = {}
        self.switchable = tuple(sorted({*switchable, 1.0})) if switchable else ()
        if self.switchable and not batch_norms(graph.module):
            raise SurgeryError("slim: this network has no BatchNorm that widths could have of their own")
        for width in self.switchable:
            self._built(self.sizes(width))

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
        if not self.min_width <= width <= 1:
            raise SurgeryError(f"slim: {what} is {width:g}, expected {self.min_width:g} to 1")

    def _rounded(self, space: Space, width: float) -> int:
        """As `make_divisible` of the paper's code."""
        wanted = width * space.size
        size = max(self.round_to, int(wanted + self.round_to / 2) // self.round_to * self.round_to)
        return min(space.size, size if size >= 0.9 * wanted else size + self.round_to)

    def at(self, width: Width) -> Narrow:
        """The network at a width, on the shared weights; made once for each configuration.

        Raises:
            SurgeryError: a width outside the range, or one that has no BatchNorms where they are switchable.
        """
        sizes = self.sizes(width)
        if self.switchable and key_of(sizes) not in self._narrow:
            shown = f"width {width:g}" if isinstance(width, int | float) else key_of(sizes)
            known = ", ".join(f"{known:g}" for known in self.switchable)
            raise SurgeryError(f"slim: {shown} has no BatchNorms of its own; the widths that have are {known}")
        return self._built(sizes)

    def _built(self, sizes: Mapping[str, int]) -> Narrow:
        key = key_of(sizes)
        if key not in self._narrow:
            self._narrow[key] = Narrow(self.graph, self._maps(sizes), own_norms=bool(self.switchable))
        return self._narrow[key]

    def extract(self, width: Width) -> ModelGraph:
        """The network at a width, with weights of its own.

        Its BatchNorms have the leading statistics of the whole network, or where they are switchable those of the
        width.
        """
        sizes = self.sizes(width)
        record = {"pass": "slim", "width": key_of(sizes), "sizes": sizes}
        norms = batch_norms(self.at(width).module) if self.switchable else {}
        graph = remap(self.graph, self._maps(sizes), record)
        for path, norm in norms.items():
            graph.module.get_submodule(path).load_state_dict(norm.state_dict())
        return graph

    def trained_module(self) -> nn.Module:
        """What is to be trained: the whole network, together with the BatchNorms of widths that have their own."""
        if not self.switchable:
            return self.graph.module
        return _Together(self.graph.module, [self.at(width).module for width in self.switchable[:-1]])

    def _maps(self, sizes: Mapping[str, int]) -> dict[Any, ChannelMap]:
        return {self.spaces[name].dim: ChannelMap(torch.arange(size)) for name, size in sizes.items()}


class _Shared(NamedTuple):
    """A parameter of a narrow network: where it stands, what stands there between two calls, and what it views."""

    owner: nn.Module
    name: str
    empty: nn.Parameter
    whole: nn.Module
    slices: tuple[Slice, ...]

    def view(self) -> Tensor:
        """The part of the whole network's parameter."""
        parameter = self.whole._parameters[self.name]
        assert parameter is not None
        return _view(parameter, self.slices)


class Narrow:
    """A narrower network over the weights of a whole one.

    With the sizes of the whole network it is that network. Otherwise its buffers are its own: the statistics of its
    BatchNorms are those that the whole network had when it was made, and follow what it is trained on.

    Attributes:
        module: its graph; its parameters have no values, but for those of BatchNorms of its own.
    """

    def __init__(self, graph: ModelGraph, maps: Mapping[Any, ChannelMap], *, own_norms: bool = False) -> None:
        self._whole = graph.module
        self._shared: dict[str, _Shared] = {}
        self._device = torch.device("cpu")
        if all(len(channel_map.source) == dim.size for dim, channel_map in maps.items()):
            self.module = graph.module
            return
        edit = Edit(maps)
        self.module = rebuild(graph, edit, lambda typed, tensor: gather(edit, typed, tensor, {})).module
        types = graph.types
        kept = batch_norms(self.module) if own_norms else {}
        for name, parameter in list(self.module.named_parameters(remove_duplicate=False)):
            path, _, own = name.rpartition(".")
            if path in kept:
                continue
            typed = types.parameters.get(types.canonical[name])
            slices = () if typed is None else tuple(_slice(edit, axis) for axis in typed.axes)
            owner, empty = self.module.get_submodule(path), nn.Parameter(meta_of(parameter), requires_grad=False)
            owner._parameters[own] = empty
            self._shared[name] = _Shared(owner, own, empty, graph.module.get_submodule(path), slices)
            self._device = parameter.device

    def parameters(self) -> dict[str, Tensor]:
        """Views of the shared weights, by name."""
        return {name: part.view() for name, part in self._shared.items()}

    def __call__(self, *inputs: Tensor) -> Any:
        """What the network gives; in the mode that the whole network is in, and on its device."""
        if self.module.training != self._whole.training:
            self.module.train(self._whole.training)
        views = self.parameters()
        device = next(iter(views.values())).device if views else self._device
        if device != self._device:
            self._move(device)
        for name, part in self._shared.items():
            part.owner._parameters[part.name] = views[name]  # type: ignore[assignment]
        try:
            return self.module(*inputs)
        finally:
            for part in self._shared.values():
                part.owner._parameters[part.name] = part.empty

    def _move(self, device: torch.device) -> None:
        """Take what is its own to where the shared weights are."""
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if not tensor.is_meta:
                tensor.data = tensor.data.to(device)
        self._device = device


class _Together(nn.Module):
    """A network, and the BatchNorms of narrower ones that are trained with it."""

    def __init__(self, network: nn.Module, narrow: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.norms = nn.ModuleList(nn.ModuleList(batch_norms(module).values()) for module in narrow)

    def forward(self, *inputs: Tensor) -> Any:
        return self.network(*inputs)


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


def parse_width(text: str) -> Width:
    """The width that a text names: `0.5`, or as `key_of` writes it `conv1=8,conv2=16` (the other spaces stay whole).

    Raises:
        SurgeryError: the text has another form.
    """
    try:
        return float(text)
    except ValueError:
        pairs = [part.rpartition("=") for part in text.split(",")]
        if all(name and size.isdecimal() for name, _, size in pairs):
            return {name: int(size) for name, _, size in pairs}
    raise SurgeryError(f"slim: width {text!r} has no known form; write 0.5, or channels of spaces: conv1=8,conv2=16")


def pack_norms(module: nn.Module, *, affine: bool = False) -> dict[str, str]:
    """The running statistics of every BatchNorm, and on demand its affine values, as text that JSON takes."""
    kinds = ("running_mean", "running_var", *(("weight", "bias") if affine else ()))
    return {
        f"{path}.{kind}": base64.b64encode(tensor.detach().double().cpu().numpy().tobytes()).decode()
        for path, norm in batch_norms(module).items()
        for kind in kinds
        if (tensor := getattr(norm, kind)) is not None
    }


def unpack_norms(module: nn.Module, packed: Mapping[str, str], *, affine: bool = False) -> None:
    """Give every BatchNorm what `pack_norms` gave, in place.

    Raises:
        SurgeryError: it belongs to another network.
    """
    expected = pack_norms(module, affine=affine)
    if expected.keys() != packed.keys():
        odd = sorted(expected.keys() ^ packed.keys())[0]
        raise SurgeryError(f"slim: the stored statistics do not fit {odd}")
    with torch.no_grad():
        for name, text in packed.items():
            path, _, kind = name.rpartition(".")
            tensor = getattr(module.get_submodule(path), kind)
            try:
                values = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float64)
                tensor.copy_(values.reshape(tensor.shape))
            except (ValueError, RuntimeError) as cause:
                raise SurgeryError(f"slim: the stored statistics do not fit {name}") from cause


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorms of a module that keep statistics, by path."""
    return {
        path: part
        for path, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    }

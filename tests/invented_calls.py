"""Every call of torch between two layers of a network: arguments that fit it, and what becomes of the network."""

from __future__ import annotations

import inspect
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from calls_left_out import why_left_out
from contracts import Masked
from invented_arguments import ARGUMENTS, SPECIAL
from invented_layers import LAYERS
from torch import Tensor, nn
from torch.overrides import get_testing_overrides

import graphsurgery as gs
from graphsurgery.axes.algebra import dims_of
from graphsurgery.axes.maps import ChannelMap
from graphsurgery.axes.types import is_inside
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.widen import undo, widen
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.growth.shares import obstacles
from graphsurgery.surgery.remapping.remap import remap

RULE, FROZEN, REFUSED, CANNOT_STAND, FAULT = "has a rule", "frozen", "refused", "cannot stand", "fault"
OUTCOMES = (RULE, FROZEN, REFUSED, CANNOT_STAND, FAULT)
CHANNELS = 8
CHANGING_AXES = {"transpose_", "swapaxes_", "swapdims_", "unsqueeze_", "squeeze_", "t_"}
TRIES = 60

HOMES: dict[str, Any] = {
    "torch": torch,
    "torch.nn.functional": F,
    "torch.special": torch.special,
    "torch.fft": torch.fft,
    "torch.linalg": torch.linalg,
    "torch.Tensor": torch.Tensor,
    "torch.nn": nn,
}


@dataclass(frozen=True)
class Spelled:
    """A name under which torch offers something to call."""

    home: str
    name: str

    @property
    def target(self) -> Any:
        return getattr(HOMES[self.home], self.name)

    @property
    def called(self) -> Any:
        """What takes the tensor as its first argument; of a method in place, one that works on a copy."""
        if self.home != "torch.Tensor":
            return self.target
        return lambda h, *args, **kwargs: getattr(h, self.name)(*args, **kwargs)

    def __str__(self) -> str:
        return f"{self.home}.{self.name}"


@dataclass(frozen=True)
class Became:
    """What became of a call between two layers.

    Attributes:
        outcome: one of `OUTCOMES`.
        words: the reason, or what went wrong.
    """

    outcome: str
    words: str = ""


def every_call() -> list[Spelled]:
    """All public functions, methods and layers, found by introspection."""
    found = []
    for home, space in HOMES.items():
        for name in dir(space):
            part = None if name.startswith("_") else getattr(space, name, None)
            layer = isinstance(part, type) and issubclass(part, nn.Module)
            if callable(part) and (layer if home == "torch.nn" else not isinstance(part, type)):
                found.append(Spelled(home, name))
    return found


# What stands around a call ------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "image": (lambda: nn.Conv2d(3, CHANNELS, 1), (3, 4, 4), 1),
    "tokens": (lambda: nn.Linear(5, CHANNELS), (6, 5), -1),
    "vector": (lambda: nn.Linear(5, CHANNELS), (5,), -1),
    "sequence": (lambda: nn.Conv1d(3, CHANNELS, 1), (3, 4), 1),
    "volume": (lambda: nn.Conv3d(3, CHANNELS, 1), (3, 2, 4, 4), 1),
    "square": (lambda: nn.Linear(5, CHANNELS), (CHANNELS, 5), -1),
}
"""The layer in front, the shape of what it reads, and the axis of its channels."""


VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda h: h,
    "shares": lambda h: 0.2 + 0.5 * h * h,
    "large": lambda h: 1.1 + h * h,
    "complex": lambda h: torch.complex(h, 0.5 * h),
    "flags": lambda h: h > 0,
}


class Between(nn.Module):
    """A layer, a call, and a layer that reads what the call gives.

    Args:
        form: what the call is given, one of `FORMS`.
        call: gets the tensor, and the layers that it needs.
        layers: those.
        variant: which numbers it is given, one of `VARIANTS`.
    """

    def __init__(
        self, form: str, call: Callable[..., Any], layers: nn.Module | None = None, variant: str = "plain"
    ) -> None:
        super().__init__()
        make, self.shape, self.axis = FORMS[form]
        self.call, self.first, self.own = call, make(), layers if layers is not None else nn.Identity()
        self.layered = layers is not None
        self.variant = VARIANTS[variant]
        self.double().eval()
        h = self.hidden(torch.randn(3, *self.shape, dtype=torch.float64))
        given = _tensor(self.given(h))
        self.plan, width = _reading(h, given, self.axis)
        self.last = (nn.Conv2d(width, 4, 1) if self.plan == "channels" else nn.Linear(width, 4)).double()

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))

    def given(self, h: Tensor) -> Any:
        h = self.variant(h)
        return self.call(h, self.own) if self.layered else self.call(h)

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        r = _numbers(_tensor(self.given(h)), h)
        if self.plan == "added":
            r = h + r.mean()
        if self.plan == "flat":
            r = r.flatten(1)
        return self.last(r.movedim(self.axis, -1) if self.plan == "added" else r)


def _tensor(found: Any) -> Any:
    """The tensor that a call gives, the first with floating numbers of several."""
    if isinstance(found, Tensor):
        return found
    leaves = [found] if not isinstance(found, (tuple, list)) else list(found)
    leaves = [leaf for part in leaves for leaf in (part if isinstance(part, (tuple, list)) else [part])]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        raise LookupError("gives no tensor")
    return next((t for t in tensors if t.is_floating_point()), tensors[0])


def _numbers(r: Tensor, h: Tensor) -> Tensor:
    if r.is_complex():
        return (r.real + r.imag).to(h.dtype)
    return r if r.dtype == h.dtype else r.to(h.dtype)


def _reading(h: Tensor, r: Tensor, axis: int) -> tuple[str, int]:
    """How the last layer reads what a call gives, and how many features it has."""
    if r.dim() == 4 and h.dim() == 4 and r.shape[0] == h.shape[0] and min(r.shape) > 0:
        return "channels", r.shape[1]
    if r.dim() == h.dim() and axis == -1 and r.shape[:-1] == h.shape[:-1] and r.shape[-1] > 0:
        return "last", r.shape[-1]
    if r.dim() > 1 and r.shape[0] == h.shape[0] and r.numel() > 0:
        return "flat", r[0].numel()
    return "added", CHANNELS


# Arguments ----------------------------------------------------------------------------------------------------------


def calls_of(spelled: Spelled) -> Iterator[tuple[str, Callable[..., Any], nn.Module | None]]:
    """Ways to call it, the likely ones first: the form of what it is given, the call, and its layers."""
    plain = spelled.name.rstrip("_") or spelled.name
    if spelled.home == "torch.nn":
        yield from _of_layer(spelled)
        return
    special = SPECIAL.get(plain)
    if special is not None:
        form, call = special
        yield form, lambda h: call(spelled.called, h), None
        return
    names = _parameters(spelled)
    for form in _forms(spelled.name):
        for values in itertools.islice(itertools.product(*(ARGUMENTS.get(n, _ANY) for n in names)), TRIES):
            yield form, _call(spelled, values), None


def _forms(name: str) -> list[str]:
    """The forms, that which a name asks for first."""
    digit = next((c for c in name if c in "13"), "")
    return sorted(FORMS, key=lambda form: form != {"1": "sequence", "3": "volume"}.get(digit, "image"))


_ANY: list[Callable[[Tensor], Any]] = [lambda h: h.flip(0), lambda _: 1, lambda _: 0.5]


def _call(spelled: Spelled, values: tuple[Callable[[Tensor], Any], ...]) -> Callable[[Tensor], Any]:
    if spelled.home == "torch.Tensor":
        return lambda h: getattr(h, spelled.name)(*(value(h) for value in values))
    target = spelled.target
    return lambda h: target(h, *(value(h) for value in values))


def _of_layer(spelled: Spelled) -> Iterator[tuple[str, Callable[..., Any], nn.Module | None]]:
    kind = spelled.target
    if spelled.name in LAYERS:
        form, make, call = LAYERS[spelled.name]
        yield form, call, make(kind)
        return
    given = ((), (CHANNELS,), (2,), (1,), (CHANNELS, CHANNELS), (CHANNELS, CHANNELS, 1))
    for form in _forms(spelled.name):
        for arguments in given:
            try:
                layer = kind(*arguments)
            except Exception:
                continue
            yield form, lambda h, own: own(h), layer


def _parameters(spelled: Spelled) -> list[str]:
    """The names of the arguments that a call has to be given behind the first."""
    overrides = get_testing_overrides()
    names = (spelled.name, spelled.name.rstrip("_"))
    like = [getattr(HOMES[home], name, None) for home in (spelled.home, "torch.Tensor", "torch") for name in names]
    for part in like:
        try:
            known = overrides.get(part)
        except TypeError:
            continue
        if known is not None:
            given = [p for p in inspect.signature(known).parameters.values() if p.default is p.empty]
            return [p.name for p in given if p.kind is not p.VAR_KEYWORD][1:]
    try:
        given = list(inspect.signature(spelled.target).parameters.values())[1:]
    except (TypeError, ValueError):
        return []
    return [p.name for p in given if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]


def network_of(spelled: Spelled) -> Between | str:
    """A network around a call; where none takes it, why."""
    found: list[str] = []
    for variant, (form, call, layers) in itertools.product(VARIANTS, list(calls_of(spelled))):
        torch.manual_seed(0)
        try:
            network = Between(form, call, layers, variant)
            with torch.no_grad():
                y = network(torch.randn(3, *network.shape, dtype=torch.float64))
            if y.shape[0] == 3 and bool(torch.isfinite(y).all()):
                return network
            found.append("gives what is no number")
        except Exception as cause:
            found.append(f"{type(cause).__name__}: {str(cause).partition(chr(10))[0][:100]}")
    return found[0] if found else "no arguments fit"


# What becomes of it -------------------------------------------------------------------------------------------------


def became(spelled: Spelled, *, check: bool = True) -> Became:
    """What becomes of a network with a call between two layers."""
    why = why_left_out(spelled.home, spelled.name)
    if why is not None:
        return Became(CANNOT_STAND, why)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = network_of(spelled)
        if isinstance(network, str):
            return Became(FAULT, f"unknown: {network}")
        try:
            return _judged(spelled, network, check)
        except gs.SurgeryError as cause:
            return Became(REFUSED, str(cause).splitlines()[0])
        except Exception as cause:
            return Became(FAULT, f"{type(cause).__name__}: {str(cause)[:200]}")


def _judged(spelled: Spelled, network: Between, check: bool) -> Became:
    x = torch.randn(3, *network.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = gs.trace(network, x[:2], check=check)
    unknown = [f.reason for f in graph.frozen if f.reason.startswith("no rule") or "its rule does not" in f.reason]
    if unknown and spelled.name in CHANGING_AXES:
        return Became(FROZEN, f"{spelled.name} changes the axes of a tensor in place, which others hold")
    if unknown:
        return Became(FAULT, unknown[0])
    off = broken(graph, network, x)
    if off:
        return Became(FAULT, off)
    if graph.frozen:
        return Became(FROZEN, graph.frozen[0].reason)
    return Became(RULE)


def broken(graph: gs.ModelGraph, network: nn.Module, x: Tensor) -> str:
    """The first contract that a network breaks, and by how much; empty where all hold."""
    with torch.no_grad():
        torch.manual_seed(2)
        other = network(x)
        torch.manual_seed(1)
        expected = network(x)
        drawn = not torch.equal(other, expected)
        for name, contract in CONTRACTS.items():
            if drawn and name != "traced":  # other channels get other numbers
                continue
            torch.manual_seed(1)
            try:
                off = contract(graph, x, expected)
            except gs.SurgeryError as cause:
                if name == "traced" or not str(cause):
                    raise
                continue
            if not off < 1e-8:
                return f"{name}: off by {off:.1e}"
    return ""


def _given(graph: gs.ModelGraph, x: Tensor) -> Any:
    torch.manual_seed(1)
    return graph.module.eval()(x)


def _permuted(graph: gs.ModelGraph, x: Tensor, expected: Tensor) -> float:
    generator = torch.Generator().manual_seed(0)
    maps = {s.dim: ChannelMap(torch.randperm(s.size, generator=generator)) for s in graph.spaces}
    return deviation(_given(remap(graph, maps, {}), x), expected)


def _cut(graph: gs.ModelGraph, x: Tensor, _: Tensor) -> float:
    inside = {dim for access in graph.types.readers if is_inside(access) for dim in dims_of(access.axis)}
    names = {s.name for s in graph.spaces if s.outer and s.readers and not s.mixed and s.dim not in inside}
    kept = {s.name: [i for i in range(s.size) if i % 3 != 1] for s in graph.spaces if s.name in names}
    if not kept:
        return 0.0
    small = compress(graph, kept)
    torch.manual_seed(1)
    return deviation(_given(small, x), Masked(graph, kept).run(x))


def _widened(graph: gs.ModelGraph, x: Tensor, expected: Tensor) -> float:
    stays = obstacles(graph)
    sizes = {s.name: s.size + 3 for s in graph.spaces if s.dim not in stays}
    if not sizes:
        return 0.0
    wide = widen(graph, to=sizes)
    return max(deviation(_given(wide, x), expected), deviation(_given(undo(wide), x), expected))


def _side_by_side(graph: gs.ModelGraph, x: Tensor, expected: Tensor) -> float:
    other = graph.copy()
    generator = torch.Generator().manual_seed(2)
    for parameter in other.module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    both = concatenate([graph, other])
    return deviation(_given(both, x), (expected + _given(other, x)) / 2)


def _saved(graph: gs.ModelGraph, x: Tensor, expected: Tensor) -> float:
    with tempfile.TemporaryDirectory() as folder:
        gs.save(graph, Path(folder) / "m.pt")
        return deviation(_given(gs.load(Path(folder) / "m.pt"), x), expected)


CONTRACTS: dict[str, Callable[[gs.ModelGraph, Tensor, Tensor], float]] = {
    "traced": lambda graph, x, expected: deviation(_given(graph, x), expected),
    "permuted": _permuted,
    "compress": _cut,
    "widen": _widened,
    "concatenate": _side_by_side,
    "saved and loaded": _saved,
}


def reason_of(spelled: Spelled, words: str) -> str:
    """A reason without the names that are in it, so that one reason is one text."""
    said = words.rpartition("`: ")[2]
    first, _, rest = said.partition(" ")
    own = first.rstrip("_").endswith(spelled.name.rstrip("_")) or first.startswith("aten::")
    said = rest if own and rest else said
    return said.partition(" You may have")[0].partition(". If you")[0][:160].rstrip(".")

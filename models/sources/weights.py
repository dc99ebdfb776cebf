"""Which of the weights in a file are those of a network, by whatever names it has them.

Programs put state_dicts into dictionaries (`state_dict`, `model_ema`, `params_ema`), and prefixes in front of names
(`module.`, `model.`, `_orig_mod.`). All of that is a path: the weights are found where the names and shapes below a
path are those of the network. Where that is so at several paths, and the values differ, nobody but the user can say
which; `key` does.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from graphsurgery.checkpoint.foreign import Contents
from graphsurgery.errors import CheckpointError, near_names

_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What compilation, sharding and checkpointing put into names, at any depth."""
_PARALLEL = "module"
"""What data parallelism puts there; networks may have parts of this name."""
_NOTHING: frozenset[str] = frozenset()
_COUNTER = "num_batches_tracked"
"""Not saved by old versions of torch, and nothing reads it."""
_SPELLINGS = {"original": "_orig", "original0": "_g", "original1": "_v", "0._u": "_u", "0._v": "_v"}
_PARAMETRIZED = re.compile(r"(?:^|(?<=\.))parametrizations\.(\w+)\.(original[01]?|0\._[uv])$")


@dataclass(frozen=True)
class Taken:
    """Where weights were found.

    Attributes:
        path: in the file; empty where they lie at its top.
        others: what else holds tensors there.
    """

    path: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class _Fit:
    """The tensors at a path next to those of the network, by plain names.

    Attributes:
        path: in the file.
        dropped: the parts that plain names are without.
        own: the tensors of the network.
        tensors: those of the file.
        missing, unexpected, unlike: the names that are only in the network, only in the file, or have other shapes.
    """

    path: str
    dropped: frozenset[str]
    own: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unlike: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.unlike)

    @property
    def found(self) -> int:
        """How many names of the network are there, less those that the network does not have."""
        return len(self.tensors) - 2 * len(self.unexpected)


def load_weights(module: nn.Module, contents: Contents, where: str, called: str, key: str | None = None) -> Taken:
    """Put the weights of a file into a module, which is left as it is where they do not fit.

    Weights that the file has in parts, and the module whole, are computed as torch does: by weight norm (`weight_g`,
    `weight_v`), by spectral norm (`weight_orig`, `weight_u`, `weight_v`), or under the masks of `torch.nn.utils.prune`
    (`weight_orig`, `weight_mask`). The module then has them as parametrizations, or as a pruned weight.

    Args:
        module: gets the weights.
        contents: of the file.
        where: the file, for messages.
        called: the network, for messages.
        key: the path in the file, or the beginning of it; needed where several sets of weights fit.

    Raises:
        CheckpointError: nothing in the file fits, or several sets do, or there is no such key.
    """
    within = chosen(contents, where, key)
    own = module.state_dict()
    fits = _fits(own, within, _NOTHING)
    if not any(fit.fits for fit in fits):
        fits += _fits(own, within, frozenset({_PARALLEL}))
    good = _unlike_each_other([fit for fit in fits if fit.fits])
    if len(good) > 1:
        names = [fit.path or "the file itself" for fit in good]
        raise CheckpointError(
            f"{where}: several sets of weights fit it, and differ: {', '.join(names)}; choose one with --key"
        )
    if not good:
        raise CheckpointError(f"{where}: does not fit {called}: {_misfit(own, within, fits)}")
    _put(module, good[0])
    return Taken(good[0].path, _left_out(contents, good[0]))


def chosen(contents: Contents, where: str, key: str | None) -> Contents:
    """What lies at the key, or everything.

    Raises:
        CheckpointError: nothing does; names what there is.
    """
    if key is None:
        return contents
    within = contents.below(key.rstrip("."))
    if not within.tensors and not within.modules:
        paths = [path for path in (*contents.sets, *contents.modules) if path]
        raise CheckpointError(
            f"{where}: has nothing at --key {key}; it holds {contents.listed()}; {near_names(key, paths)}"
        )
    return within


def fill(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a module; each name and shape must be there on both sides.

    Raises:
        CheckpointError: counts the names that are missing, unexpected or of another shape, with the first of each.
    """
    own = module.state_dict()
    fit = _judged("", own, {_plain(name, _NOTHING): tensor for name, tensor in weights.items()}, _NOTHING)
    if not fit.fits:
        raise CheckpointError(f"{where}: {_counts(fit)}")
    _put(module, fit)


def _fits(own: Mapping[str, Tensor], contents: Contents, dropped: frozenset[str]) -> list[_Fit]:
    """How the network fits at each path where its first tensor may lie."""
    theirs = {_plain(name, dropped): tensor for name, tensor in contents.tensors.items()}
    paths = next(filter(None, (_paths(name, theirs) for name in map(partial(_plain, dropped=dropped), own))), [])
    below = ({n.removeprefix(path): t for n, t in theirs.items() if n.startswith(path)} for path in paths)
    return [_judged(path, own, tensors, dropped) for path, tensors in zip(paths, below, strict=True)]


def _paths(name: str, theirs: Iterable[str]) -> list[str]:
    """What stands in front of a name of the network, in any of its spellings, wherever the file has it."""
    if name.endswith(_COUNTER):
        return []
    ends = (name, f"{name}_g", f"{name}_orig")
    found = [stored.removesuffix(end) for stored in theirs for end in ends if stored.endswith(end)]
    return list(dict.fromkeys(path for path in found if not path or path.endswith(".")))


def _plain(name: str, dropped: frozenset[str]) -> str:
    """A name without what wraps its parts; those of parametrizations in the older spelling of torch."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS and part not in dropped]
    return _PARAMETRIZED.sub(lambda match: f"{match[1]}{_SPELLINGS[match[2]]}", ".".join(parts))


def _judged(path: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], dropped: frozenset[str]) -> _Fit:
    """What is there on one side only, or has other shapes; `tensors` have plain names."""
    mine = {_plain(name, dropped): tensor for name, tensor in own.items()}
    parts = {name: kind for name in mine if name not in tensors and (kind := _in_parts(name, mine[name], tensors))}
    used = {f"{name}{end}" for name, kind in parts.items() for end in _PARTS[kind]}
    return _Fit(
        path.rstrip("."),
        dropped,
        mine,
        tensors,
        tuple(n for n in mine if n not in tensors and n not in parts and not n.endswith(_COUNTER)),
        tuple(n for n in tensors if n not in mine and n not in used),
        tuple(n for n in mine if n in tensors and mine[n].shape != tensors[n].shape),
    )


# Weights in parts -----------------------------------------------------------------------------------------------------

_PARTS = {"pruned": ("_orig", "_mask"), "spectral norm": ("_orig", "_u", "_v"), "weight norm": ("_g", "_v")}
"""The endings of the tensors that a weight is computed from."""


def _in_parts(name: str, whole: Tensor, tensors: Mapping[str, Tensor]) -> str | None:
    """As what a file has a weight that the network has whole; None where it has it not, or in another way."""
    for kind, ends in _PARTS.items():
        found = [tensors[f"{name}{end}"] for end in ends if f"{name}{end}" in tensors]
        if len(found) < len(ends):
            continue
        values = found[1] if kind == "weight norm" else found[0]
        fits = values.shape == whole.shape
        if kind == "weight norm":
            fits = fits and _is_norm(found[0], values)
        elif kind == "pruned":
            fits = fits and found[1].shape == whole.shape
        if fits:
            return kind
    return None


def _is_norm(g: Tensor, v: Tensor) -> bool:
    """Whether `g` has a length for each index of one axis of `v`, or one length of all of it."""
    if g.dim() == 0:
        return True
    axis = _norm_axis(g, v)
    return axis is not None and list(g.shape) == [n if a == axis else 1 for a, n in enumerate(v.shape)]


def _norm_axis(g: Tensor, v: Tensor) -> int | None:
    """The axis along which weight norm has a length for each index; None for one length."""
    long = [axis for axis, size in enumerate(g.shape) if size != 1]
    return next(iter([*long, *(axis for axis, size in enumerate(v.shape) if size == 1)]), None) if g.dim() else None


def _put(module: nn.Module, fit: _Fit) -> None:
    """Load tensors that fit."""
    for name in list(module.state_dict()):
        plain = _plain(name, fit.dropped)
        kind = None if plain in fit.tensors else _in_parts(plain, fit.own[plain], fit.tensors)
        if kind is not None:
            path, _, leaf = name.rpartition(".")
            _split(module.get_submodule(path), leaf, kind, [fit.tensors[f"{plain}{end}"] for end in _PARTS[kind]])
    names = {name: _plain(name, fit.dropped) for name in module.state_dict()}
    state = {name: fit.tensors[plain] for name, plain in names.items() if plain in fit.tensors}
    module.load_state_dict(state, strict=False)


def _split(layer: nn.Module, name: str, kind: str, parts: Sequence[Tensor]) -> None:
    """Let a layer compute a weight from parts of these shapes."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "pruned":
            prune.custom_from_mask(layer, name, parts[1])
        elif kind == "weight norm":
            parametrizations.weight_norm(layer, name, dim=_norm_axis(*parts))  # type: ignore[arg-type]
        else:
            parametrizations.spectral_norm(layer, name)


# Messages -------------------------------------------------------------------------------------------------------------


def _unlike_each_other(fits: list[_Fit]) -> list[_Fit]:
    """The first of those that have the same values."""
    found: list[_Fit] = []
    for fit in fits:
        if not any(_same(fit.tensors, other.tensors) for other in found):
            found.append(fit)
    return found


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    def same(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))

    return one.keys() == other.keys() and all(same(tensor, other[name]) for name, tensor in one.items())


def _left_out(contents: Contents, fit: _Fit) -> tuple[str, ...]:
    """The sets of weights beside those that were taken, and the parts of their own set."""
    taken = {id(tensor) for tensor in fit.tensors.values()}
    found = {}
    for name, tensor in contents.tensors.items():
        if id(tensor) in taken:
            continue
        place = contents.set_of(name)
        rest = name.removeprefix(f"{place}.") if place else name
        inside = place == contents.set_of(fit.path) or fit.path.startswith(f"{place}.")
        found[f"{place}.{rest.partition('.')[0]}".lstrip(".") if inside else place] = True
    return tuple(found)


def _misfit(own: Mapping[str, Tensor], contents: Contents, fits: list[_Fit]) -> str:
    """What is wrong with the weights that fit best."""
    if not fits:
        place = contents.set_of(next(iter(contents.tensors), ""))
        prefix = f"{place}." if place else ""
        tensors = {n.removeprefix(prefix): t for n, t in contents.tensors.items() if n.startswith(prefix)}
        fits = [_judged(prefix, own, {_plain(n, _NOTHING): t for n, t in tensors.items()}, _NOTHING)]
    best = max(fits, key=lambda fit: fit.found)
    for name in best.missing:
        parts = [part for part in best.unexpected if part.startswith((f"{name}_", f"{_parametrizations(name)}."))]
        if parts:
            return (
                f"{name} is there in parts ({', '.join(parts)}), and not as weight norm, spectral norm or a mask; give "
                "a spec that registers the same parametrization, or remove that before saving"
            )
    several = f"; the file holds {contents.listed()}, to choose from with --key" if len(contents.sets) > 1 else ""
    return f"{_counts(best)}{several}"


def _parametrizations(name: str) -> str:
    path, _, leaf = name.rpartition(".")
    return f"{path}.parametrizations.{leaf}".lstrip(".")


def _counts(fit: _Fit) -> str:
    found = []
    if fit.missing:
        found.append(f"{len(fit.missing)} missing (first {fit.missing[0]})")
    if fit.unexpected:
        found.append(f"{len(fit.unexpected)} unexpected (first {fit.unexpected[0]})")
    if fit.unlike:
        name = fit.unlike[0]
        shapes = f"{list(fit.tensors[name].shape)} in the file, {list(fit.own[name].shape)} in the model"
        found.append(f"{len(fit.unlike)} of another shape (first {name}: {shapes})")
    return f"of {len(fit.own)} tensors {', '.join(found)}; give the spec and ?options it was trained with"

"""The fields of a configuration with which a class builds the sizes that an edited network has.

Libraries build all layers of a network from one configuration: `kind(config)`. What its fields have to be is found as
what attributes have to be: the class is built from a configuration whose integers know their places, so the layers and
attributes that it makes know from which fields their sizes come.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.modes import kept_modes
from graphsurgery.network.outputs.naming import run
from graphsurgery.network.paths import OF_EVERY_MODULE, modules_of, named_tensors
from graphsurgery.surgery.installing.attributes import follow_object, put_in_object
from graphsurgery.surgery.installing.followed import Followed, IntegerPlace, Relation, following_int, solved
from graphsurgery.surgery.installing.install import as_traced, installed_with_numbers, placed_inputs, traced_again
from graphsurgery.surgery.installing.without_values import check_same_graph, has_values
from graphsurgery.tracing.leaves import is_leaf

_Module = TypeVar("_Module", bound=nn.Module)
_NAME = "config"


def config_of(graph: ModelGraph, model: nn.Module) -> dict[str, Any]:
    """The fields of a configuration that an edit has changed, with the values that build the new sizes.

    Args:
        graph: a network that was traced from `model` and edited; see `install`.
        model: an instance of a class that is built from `model.config` alone, as those of transformers are.

    Returns:
        The fields by name; those of a configuration inside another as `text_config.hidden_size`.

    Raises:
        SurgeryError: the class cannot hold the edit (see `install`), or not by its configuration: one field stands for
            sizes that the network has not alike.
    """
    return configured(graph, model)[1]


def configured(graph: ModelGraph, model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """The model that `install` makes, built anew from its configuration, and the fields that have changed.

    Its outputs are those of the installed one to the last bit. Errors are those of `config_of`.
    """
    called = type(model).__name__
    config: Any = getattr(model, _NAME, None)
    if config is None or not hasattr(config, "__dict__"):
        raise SurgeryError(f"install: {called} has no configuration (model.config); gs.install gives the module itself")
    installed, numbers = installed_with_numbers(graph, model)
    changed = _config(installed, model, numbers)
    built: Any
    if has_values(model):
        built = _built(type(model), changed, called)
    else:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        built = without_weights(lambda: _built(type(model), changed, called), dtype)
    _fill(built, installed, called)
    check_same(graph, installed, built, f"install: {called} built from its configuration")
    return built, _differences(config, changed)


def check_same(graph: ModelGraph, expected: nn.Module, found: nn.Module, what: str) -> None:
    """Refuse a model that gives other numbers than another one of its class, in evaluation, to the last bit.

    One without weights is traced and compared with the network.
    """
    if not has_values(found):
        check_same_graph(graph, traced_again(graph, as_traced(graph, found), type(found).__name__), what)
        return
    outputs = []
    for module in (expected, found):
        called = as_traced(graph, module)
        inputs = placed_inputs(graph, called, graph.example_inputs(3))
        with kept_modes(module), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module.eval()
            outputs.append(run(called, inputs, 0))  # type: ignore[arg-type]
    for name, tensor in outputs[0].items():
        other = outputs[1][name]
        if tensor.shape != other.shape or not torch.equal(tensor.nan_to_num(), other.nan_to_num()):
            raise SurgeryError(
                f"{what} gives another {name}: it computes with a number that the edit keeps; take gs.install, or"
                " leave the spaces whole that it is made of"
            )


def without_weights(build: Callable[[], _Module], dtype: torch.dtype) -> _Module:
    """What a function builds, with parameters on the meta device: of any size, it takes no memory.

    Buffers have their values, which a class computes for itself. What is tied is so afterwards.

    Args:
        build: makes the module.
        dtype: of the numbers whose precision it does not say.
    """
    from accelerate import init_empty_weights

    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False):
            built = build()
    finally:
        torch.set_default_dtype(usual)
    tie: Any = getattr(built, "tie_weights", None)
    if tie is not None:
        tie()
    return built


def _config(installed: nn.Module, model: nn.Module, numbers: dict[IntegerPlace, int]) -> Any:
    """A configuration with the sizes of a model."""
    called = type(model).__name__
    followed = copy.deepcopy(model.config)
    old = follow_object(followed, _NAME)
    homes = {type(part).__module__ for part in model.modules()}
    sizes = _Sizes()
    with torch.device("meta"), following_int(homes), sizes:
        drawn = _built(type(model), followed, called)
    relations = []
    others = modules_of(installed)
    for path, module in modules_of(drawn).items():
        if path not in others:
            continue
        for name, value in vars(module).items():
            wanted = vars(others[path]).get(name)
            if name not in OF_EVERY_MODULE and (is_leaf(module) or IntegerPlace(path, (name,)) in numbers):
                relations += [Relation(*pair, f"{path}.{name}") for pair in _pairs(value, wanted)]
    theirs = named_tensors(installed)
    for name, tensor in named_tensors(drawn).items():
        if name in theirs:
            relations += sizes.relations(name, tensor, theirs[name])
    config = copy.deepcopy(model.config)
    put_in_object(config, _NAME, solved(relations, old, f"install: the configuration of {called}"))
    return config


class _Sizes(TorchFunctionMode):
    """What the sizes of tensors were computed from that modules make for themselves, inside of the block."""

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[int, tuple[Tensor, tuple[Any, ...]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and not self._given(found):
            sizes = args[0] if args and isinstance(args[0], tuple | list) else args
            made = all(isinstance(n, int) for n in sizes) and found.shape == tuple(sizes)
            like = next((part for part in args if isinstance(part, Tensor) and part.shape == found.shape), None)
            given = tuple(sizes) if made else () if like is None else self._given(like)
            self._of[found.untyped_storage()._cdata] = found, given
        return found

    def _given(self, tensor: Tensor) -> tuple[Any, ...]:
        """The sizes that a tensor was made with, or one that it was computed from number by number."""
        made, given = self._of.get(tensor.untyped_storage()._cdata, (tensor, ()))
        return given if made.shape == tensor.shape else ()

    def relations(self, name: str, tensor: Tensor, wanted: Tensor) -> Iterator[Relation]:
        """What the numbers have to be for an axis of a tensor that has another size than it was made with."""
        for number, size in zip(self._given(tensor), wanted.shape, strict=False):
            if isinstance(number, Followed) and int(number) != size:
                yield Relation(number, size, name)


def _pairs(value: Any, wanted: Any) -> list[tuple[Followed, int]]:
    """The followed integers in an attribute, each with that of the installed model."""
    if isinstance(value, Followed):
        return [(value, wanted)] if type(wanted) is int else []
    if isinstance(value, tuple | list) and isinstance(wanted, tuple | list) and len(value) == len(wanted):
        return [pair for parts in zip(value, wanted, strict=True) for pair in _pairs(*parts)]
    return []


def _built(kind: type, config: Any, called: str) -> Any:
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(config)
    except Exception as cause:  # whatever the library raises
        raise SurgeryError(
            f"install: {called} cannot be built from a configuration of these sizes: {one_line(cause)}"
        ) from cause


def _fill(built: nn.Module, installed: nn.Module, called: str) -> None:
    """Give a model built from a configuration the weights of an installed one, in place."""
    theirs = installed.state_dict()
    for name, tensor in built.state_dict().items():
        if name in theirs and theirs[name].shape != tensor.shape:
            raise SurgeryError(
                f"install: the configuration of {called} gives {name} the shape {list(tensor.shape)}, the network has "
                f"{list(theirs[name].shape)}; cut what it is computed from alike (heads and the width they share, all "
                "layers: compress --uniform), or take gs.install"
            )
    precise = named_tensors(installed)
    for name, tensor in named_tensors(built).items():  # each as it is: not every buffer is as precise as the weights
        if name in precise and tensor.is_floating_point():
            tensor.data = tensor.data.to(precise[name].dtype)
    built.load_state_dict(theirs)
    modes = {path: part.training for path, part in modules_of(installed).items()}
    for path, part in modules_of(built).items():
        part.__dict__["training"] = modes.get(path, installed.training)


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a configuration that are not as they were."""
    found: dict[str, Any] = {}
    for name, value in vars(new).items():
        before = vars(old).get(name)
        if hasattr(value, "__dict__") and not isinstance(value, type) and type(value) is type(before):
            found |= _differences(before, value, f"{prefix}{name}.")
        elif isinstance(value, int | list | tuple | dict) and value != before:
            found[f"{prefix}{name}"] = value
    return found

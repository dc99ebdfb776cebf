"""What a node gives on meta tensors: shapes and dtypes without data, sizes as plain numbers.

Every node of a traced graph carries it in `node.meta["value"]`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphsurgery.network.assembly import Network
from graphsurgery.network.copying import copy_module, meta_of
from graphsurgery.network.custom_gradients import KeptFunction
from graphsurgery.network.layers import TrainingFlag, hold
from graphsurgery.network.outputs.records import held_by, is_record
from graphsurgery.network.paths import map_values
from graphsurgery.network.values.packing import STAND_INS
from graphsurgery.network.values.shapes import result_of

DRAWS: frozenset[Any] = frozenset({torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal})
"""Functions that make random tensors of a shape."""


def evaluate(node: fx.Node, attribute: Callable[[str], Any], *, strict: bool = False) -> Any:
    """The value of one node from the values of its inputs.

    Args:
        node: any node but a placeholder; its inputs carry their values.
        attribute: the meta tensor or the module (with meta parameters) of a qualified name.
        strict: whether only those formulas of `shapes` may stand for a run that look at every argument.
    """
    args: Any = fx.map_arg(node.args, _value)
    kwargs: Any = fx.map_arg(node.kwargs, _value) if node.kwargs else {}
    if node.op == "output":
        return args[0]
    if is_record(node.target):
        return held_by(node.target, args, kwargs)
    if node.op == "get_attr":
        return attribute(str(node.target))
    if node.op == "call_module":
        module = attribute(str(node.target))
        if type(module) is TrainingFlag:
            return False
        known = result_of(node.op, module, args, kwargs, strict=strict)
        if known is not None:
            return known
        with torch.no_grad():
            return run_on_meta(module, args, kwargs)
    if node.op == "call_method" and node.target in ("cpu", "cuda"):
        return args[0]
    known = result_of(node.op, node.target, args, kwargs, strict=strict)
    if known is not None:
        return known
    with torch.no_grad():
        return _ran(node, args, kwargs)


def _value(node: fx.Node) -> Any:
    return node.meta["value"]


def _ran(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """What a method or a function gives when it is run."""
    if node.op == "call_method":
        return called(node, None, args, kwargs)
    assert callable(node.target)
    if node.target in STAND_INS:
        return STAND_INS[node.target](*args, **kwargs)
    value = _drawn(node.target, args, kwargs) if node.target in DRAWS else node.target(*args, **kwargs)
    # A factory (`torch.ones(batch, 1)`) makes real tensors, which do not go together with meta tensors.
    return meta_of(value) if isinstance(value, Tensor) and not value.is_meta else value


def called(node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
    """What the call of a node gives of these arguments: of its module, which is given, its method, or its function."""
    if module is not None:
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _drawn(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What a function that draws gives; the state of what it draws from stays."""
    with torch.random.fork_rng(devices=[]):
        return function(*args, **kwargs)


def run_on_meta(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """What a module gives on meta tensors.

    A module of the user's may look at values, which meta tensors do not have; it is then run on random numbers.
    """
    if not is_foreign(module):
        return module.forward(*args, **kwargs)
    try:
        with _forgetting(module):
            return module.forward(*args, **kwargs)
    except Exception:
        return run_on_numbers(module, args, kwargs)


@contextlib.contextmanager
def _forgetting(module: nn.Module) -> Iterator[None]:
    """Take back what a forward keeps in attributes and buffers: results of meta tensors would be found by the next."""
    slots = [slots for part in module.modules() for slots in (part.__dict__, part._buffers)]
    before = [dict(values) for values in slots]
    try:
        yield
    finally:
        for values, old in zip(slots, before, strict=True):
            values.clear()
            values.update(old)


def run_on_numbers(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """What a module gives on meta tensors, whose values it needs: it is run on random numbers."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        filled = copy_module(module, _filled)
        return map_values(filled(*map_values(args, _filled), **map_values(kwargs, _filled)), meta_of)


def is_foreign(module: nn.Module) -> bool:
    """Whether a leaf is neither torch's nor ours, but a module or a function that a trace has kept whole."""
    return isinstance(module, KeptFunction) or not type(module).__module__.startswith(
        ("torch.", "torchvision.ops", "graphsurgery.")
    )


def _filled(tensor: Tensor) -> Tensor:
    return torch.rand(tensor.shape).to(tensor.dtype)


def propagate(module: fx.GraphModule, inputs: Sequence[Tensor], *, strict: bool = False) -> None:
    """Give every node of a graph its value; for graphs that come from a file rather than from a trace.

    Args:
        module: the network.
        inputs: meta tensors.
        strict: as for `evaluate`.
    """
    tensors: Mapping[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    cache: dict[str, Any] = {}

    def attribute(path: str) -> Any:
        if path not in cache:
            cache[path] = meta_of(tensors[path]) if path in tensors else _meta_attribute(module, path)
        return cache[path]

    remaining = iter(inputs)
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "placeholder":
                node.meta["value"] = meta_of(next(remaining))
            else:
                node.meta["value"] = evaluate(node, attribute, strict=strict)


def values_for(module: fx.GraphModule, inputs: Sequence[Tensor], *, checked: bool = True) -> dict[fx.Node, Any]:
    """What every node of a graph gives for other inputs; the values that its nodes carry stay.

    Args:
        module: the network.
        inputs: meta tensors.
        checked: whether decisions that the network has taken are checked; else they stand for these inputs too.
    """
    shadow = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if checked or node.target is not hold:
            copies[node] = shadow.node_copy(node, copies.__getitem__)
            copies[node].meta = {}
    propagate(Network(module, shadow), inputs)
    return {node: copy.meta["value"] for node, copy in copies.items()}


def _meta_attribute(module: fx.GraphModule, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    found = getattr(module.get_submodule(parent), name)
    return copy_module(found, meta_of) if isinstance(found, nn.Module) else meta_of(found)

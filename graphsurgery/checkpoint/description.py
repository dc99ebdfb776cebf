"""A network as a JSON-like description: what a checkpoint holds besides the tensors.

A description is `{"modules": …, "tensors": …, "nodes": …}`: the layers by path, with the class and its constructor's
arguments; the parameters and buffers by path; the calls, in order. It names only what `vocabulary` lists. `building`
makes the network again.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphsurgery.checkpoint import vocabulary
from graphsurgery.checkpoint.encoding import dtype_name, encode
from graphsurgery.errors import SurgeryError
from graphsurgery.network.outputs.records import held_by, is_record
from graphsurgery.network.training_only import InTraining

CONTAINER = "torch.nn.Module"
"""The stored class of a module that only holds others."""

IN_TRAINING = "graphsurgery.network.training_only.InTraining"
"""The stored class of a layer that acts in training only: its nodes are stored with it, its parts below its path."""

NOT_STATE = frozenset({"device", "dtype", "_weight", "_freeze", "min_value", "max_value"})
"""Constructor arguments that a layer does not keep: where it is made, its first values, and names no longer in use."""

_RECOVERED: Mapping[tuple[str, str], Callable[[Any], Any]] = {
    ("MultiheadAttention", "bias"): lambda layer: layer.in_proj_bias is not None,
    ("MultiheadAttention", "add_bias_kv"): lambda layer: layer.bias_k is not None,
    ("FrozenBatchNorm2d", "num_features"): lambda layer: layer.weight.shape[0],
}
"""Constructor arguments that are not kept in an attribute of the same name, by class and argument."""


def describe(module: fx.GraphModule) -> dict[str, Any]:
    """The description of a network; the values of its tensors are not part of it.

    Raises:
        SurgeryError: a layer, function, method or argument is not in the vocabulary; the message names the node.
    """
    return {
        "modules": _describe_modules(module),
        "tensors": _describe_tensors(module),
        "nodes": _describe_nodes(module.graph),
    }


def _describe_modules(root: fx.GraphModule) -> dict[str, Any]:
    modules: dict[str, Any] = {"": {"class": CONTAINER, "training": root.training}}
    _describe_below(root, "", modules, {})
    return modules


def _describe_below(parent: nn.Module, prefix: str, modules: dict[str, Any], first: dict[int, str]) -> None:
    """Add what lies below a module; `first` has the paths of those that were met, by their ids."""
    for name, module in parent._modules.items():
        if module is None:
            continue
        path = vocabulary.checked_path(f"{prefix}{name}")
        if id(module) in first:
            modules[path] = {"same": first[id(module)]}
            continue
        first[id(module)] = path
        if type(module) in vocabulary.CONTAINERS:
            modules[path] = {"class": CONTAINER, "training": module.training}
            _describe_below(module, f"{path}.", modules, first)
        elif type(module) is InTraining:
            modules[path] = _describe_training_only(path, module)
            _describe_below(module, f"{path}.", modules, first)
        else:
            modules[path] = _describe_layer(path, module)


def _describe_training_only(path: str, layer: InTraining) -> dict[str, Any]:
    try:
        nodes = _describe_nodes(layer.graph)
    except SurgeryError as cause:
        raise SurgeryError(f"{path}: what {layer.kind} does in training cannot be stored: {cause}") from cause
    return {"class": IN_TRAINING, "kind": layer.kind, "training": layer.training, "nodes": nodes}


def _describe_layer(path: str, layer: nn.Module) -> dict[str, Any]:
    cls = type(layer)
    name = vocabulary.class_name(cls)
    if name is None:
        raise SurgeryError(
            f"{path}: a layer of class {cls.__module__}.{cls.__qualname__} cannot be stored; "
            f"use a layer of torch.nn or graphsurgery.network.layers, or one that acts in training only and is followed"
        )
    try:
        arguments = {key: encode(value, _no_node) for key, value in _arguments(layer).items()}
    except (SurgeryError, AttributeError) as cause:
        raise SurgeryError(f"{path}: the arguments of {name} cannot be recovered: {cause}") from cause
    return {"class": name, "arguments": arguments, "training": layer.training}


def _arguments(layer: nn.Module) -> dict[str, Any]:
    """The constructor's arguments, from same-named attributes; those at their default are left out."""
    cls = type(layer)
    parameters = inspect.signature(cls).parameters
    if issubclass(cls, nn.RNNBase):
        own = [names for base, names in vocabulary.RNN_OWN_ARGUMENTS.items() if issubclass(cls, base)]
        names = [*vocabulary.RNN_ARGUMENTS, *itertools.chain(*own)]
    else:
        names = [key for key, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    arguments = {}
    for key in names:
        if key in NOT_STATE:
            continue
        recovered = _RECOVERED.get((cls.__name__, key))
        value = recovered(layer) if recovered is not None else getattr(layer, key)
        if key == "bias" and not isinstance(value, bool):
            value = value is not None
        default = parameters[key].default if key in parameters else inspect.Parameter.empty
        if type(value) is not type(default) or value != default:
            arguments[key] = value
    return arguments


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, tied ones under each of their names, in the order of a state_dict."""
    tensors: list[tuple[str, Tensor]] = []
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                tensors.append((f"{prefix}.{name}" if prefix else name, tensor))
    return tensors


def _describe_tensors(root: fx.GraphModule) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    first: dict[int, str] = {}
    for path, tensor in named_tensors(root):
        vocabulary.checked_path(path)
        if id(tensor) in first:
            tensors[path] = {"same": first[id(tensor)]}
            continue
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            raise SurgeryError(
                f"{path}: only dense tensors with values can be stored, found one that is {_kind(tensor)}"
            )
        first[id(tensor)] = path
        owner, _, name = path.rpartition(".")
        tensors[path] = {
            "kind": "parameter" if isinstance(tensor, nn.Parameter) else "buffer",
            "shape": list(tensor.shape),
            "dtype": dtype_name(tensor.dtype),
            "requires_grad": tensor.requires_grad,
            "persistent": name not in root.get_submodule(owner)._non_persistent_buffers_set,
        }
    return tensors


def _kind(tensor: Tensor) -> str:
    return "on the meta device" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)


def _describe_nodes(graph: fx.Graph) -> list[dict[str, Any]]:
    if type(graph._codegen) is not fx.graph.CodeGen:
        raise SurgeryError("the graph regroups its inputs (a pytree); trace the model with plain tensor inputs")
    nodes = []
    for node in graph.nodes:
        if is_record(node.target):
            continue
        try:
            vocabulary.check_target(node.op, _target_name(node), node.args)
            nodes.append(
                {
                    "name": vocabulary.checked_name(node.name),
                    "op": node.op,
                    "target": _target_name(node),
                    "args": [encode(value, _reference) for value in node.args],
                    "kwargs": {
                        vocabulary.checked_name(key): encode(value, _reference) for key, value in node.kwargs.items()
                    },
                }
            )
        except SurgeryError as cause:
            raise SurgeryError(f"{node.name}: {cause}") from cause
    return nodes


def _reference(node: fx.Node) -> Any:
    """A node's name; a named tuple is stored as the tuple of its fields, a dataclass as a dict."""
    if is_record(node.target):
        return encode(held_by(node.target, node.args, node.kwargs), _reference)
    return {"node": node.name}


def _no_node(node: fx.Node) -> Any:
    raise SurgeryError(f"a layer's argument cannot be the node {node.name}")


def _target_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    name = vocabulary.function_name(node.target)
    if name is None:
        found = f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', node.target)}"
        raise SurgeryError(
            f"function {found} cannot be stored; use one of torch, operator or graphsurgery.network.layers"
        )
    return name

"""A network from its description and its tensors.

Descriptions come from files, and fx makes Python source from the names in them: so every name is checked here, and
classes, functions, methods and attributes are looked up in `vocabulary` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphsurgery.checkpoint import vocabulary
from graphsurgery.checkpoint.description import CONTAINER, IN_TRAINING, NOT_STATE, named_tensors
from graphsurgery.checkpoint.encoding import decode, dtype_name
from graphsurgery.checkpoint.older_norms import OlderNorms, is_old_norm
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.network.assembly import Network
from graphsurgery.network.training_only import InTraining


def build(description: Any, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """The network of a description, with these tensors; they are used as they are, not copied.

    Raises:
        SurgeryError: the description is damaged, names something outside the vocabulary, or does not fit the tensors.
    """
    root = Network(nn.Module(), fx.Graph())
    where: str | None = "the description"
    try:
        graph = fx.Graph()
        norms = OlderNorms(root, graph, {str(entry["name"]) for entry in description["nodes"]})
        for where, entry in description["modules"].items():
            _add_module(root, where, entry, norms)
        made: dict[str, Tensor] = {}
        for where, entry in description["tensors"].items():
            _add_tensor(root, where, entry, tensors, made)
        missing = [path for path, tensor in named_tensors(root) if path not in made or tensor is not made[path]]
        if missing:
            raise SurgeryError(f"{missing[0]}: the layer has this tensor, the description does not")
        for where, entry in description["modules"].items():
            if entry.get("class") == IN_TRAINING:
                _add_training_graph(root.get_submodule(where), entry)
        where = None
        _graph(root, description["nodes"], graph, norms)
        norms.finish()
        root.graph = graph
    except SurgeryError as cause:
        raise cause if where is None else SurgeryError(f"{where or 'root'}: {cause}") from cause
    except Exception as cause:  # a description may come from anywhere, so anything may be wrong with it
        raise _damaged(where or "root", cause) from cause
    return root


def _damaged(where: str, cause: Exception) -> SurgeryError:
    return SurgeryError(f"{where}: the description is damaged ({type(cause).__name__}: {one_line(cause)})")


def _graph(
    root: nn.Module, entries: Sequence[Mapping[str, Any]], graph: fx.Graph, norms: OlderNorms | None = None
) -> fx.Graph:
    """The graph of nodes that name what lies below a module; an error begins with the node."""
    nodes: dict[str, fx.Node] = {}
    where = "the nodes"
    try:
        for entry in entries:
            where = str(entry["name"])
            _add_node(root, graph, entry, nodes, norms)
        where = "output"
        _check_ends(graph)
    except SurgeryError as cause:
        raise SurgeryError(f"{where}: {cause}") from cause
    except Exception as cause:  # a description may come from anywhere, so anything may be wrong with it
        raise _damaged(where, cause) from cause
    return graph


def _add_training_graph(layer: nn.Module, entry: Mapping[str, Any]) -> None:
    """What a layer that acts in training only computes there, of one input."""
    assert isinstance(layer, InTraining)
    graph = _graph(layer, entry["nodes"], fx.Graph())
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise SurgeryError("a layer that acts in training only has one input")
    layer.set_graph(graph)


def _add_module(root: fx.GraphModule, path: str, entry: Mapping[str, Any], norms: OlderNorms) -> None:
    if path == "":
        root.training = bool(entry["training"])
        return
    parent, _, name = vocabulary.checked_path(path).rpartition(".")
    owner = root.get_submodule(parent)
    if type(owner) not in (nn.Module, type(root), InTraining):
        raise SurgeryError(f"a layer cannot hold the layer {name}")
    if "same" in entry:
        owner.add_module(name, root.get_submodule(entry["same"]))
        return
    module: nn.Module
    if entry["class"] == CONTAINER:
        module = nn.Module()
    elif entry["class"] == IN_TRAINING:
        if type(owner) is InTraining:
            raise SurgeryError(f"a layer that acts in training only cannot hold another, {name}")
        module = InTraining(vocabulary.checked_name(entry["kind"]), fx.Graph(), {})
    elif is_old_norm(entry["class"]):
        module = norms.layer({key: decode(value, {}) for key, value in entry["arguments"].items()})
    elif entry["class"] in vocabulary.module_classes():
        arguments = {vocabulary.checked_name(key): decode(value, {}) for key, value in entry["arguments"].items()}
        if NOT_STATE & arguments.keys():
            raise SurgeryError(f"{entry['class']} is stored with {sorted(NOT_STATE & arguments.keys())}")
        module = _layer(entry["class"], arguments)
    else:
        raise SurgeryError(f"class {entry['class']!r} is not one that a checkpoint may hold")
    owner.add_module(name, module)
    module.train(bool(entry["training"]))


def _add_tensor(
    root: fx.GraphModule,
    path: str,
    entry: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    made: dict[str, Tensor],
) -> None:
    prefix, _, name = vocabulary.checked_path(path).rpartition(".")
    owner = root.get_submodule(prefix)
    if "same" in entry:
        tensor = made[entry["same"]]
    else:
        tensor = tensors[path]
        found, expected = (dtype_name(tensor.dtype), list(tensor.shape)), (entry["dtype"], entry["shape"])
        if found != expected:
            raise SurgeryError(f"the tensor is {found}, the description says {expected}")
        if entry["kind"] == "parameter":
            tensor = nn.Parameter(tensor, requires_grad=bool(entry["requires_grad"]))
        else:
            tensor = tensor.requires_grad_(bool(entry["requires_grad"]))
    slots: dict[str, Any] = owner._parameters if isinstance(tensor, nn.Parameter) else owner._buffers
    if type(owner) in (nn.Module, type(root), InTraining):
        if name not in slots and isinstance(tensor, nn.Parameter):
            owner.register_parameter(name, tensor)
        elif name not in slots:
            owner.register_buffer(name, tensor, persistent=bool(entry.get("persistent", True)))
    else:
        if slots.get(name) is None or (slots[name].is_meta and slots[name].shape != tensor.shape):
            raise SurgeryError(f"the layer has no tensor of shape {tuple(tensor.shape)} here")
        slots[name] = tensor
    made[path] = tensor


def _add_node(
    root: nn.Module, graph: fx.Graph, entry: Mapping[str, Any], nodes: dict[str, fx.Node], norms: OlderNorms | None
) -> None:
    name, op, target = vocabulary.checked_name(entry["name"]), entry["op"], entry["target"]
    if not isinstance(target, str) or name in nodes:
        raise SurgeryError("expected a target that is a string and a name of its own")
    args = tuple(decode(value, nodes) for value in entry["args"])
    kwargs = {vocabulary.checked_name(key): decode(value, nodes) for key, value in entry["kwargs"].items()}
    if op != "call_function" or not is_old_norm(target):
        vocabulary.check_target(op, target, args)
    if op == "get_attr":
        prefix, _, attribute = target.rpartition(".")
        owner = root.get_submodule(prefix)
        if attribute not in owner._parameters and attribute not in owner._buffers:
            raise SurgeryError(f"{target} is not a parameter or buffer")
    old_norm = norms is not None and norms.called(op, target)
    if op == "call_module" and type(root.get_submodule(target)) is nn.Module and not old_norm:
        raise SurgeryError(f"{target} is not a layer")
    if norms is not None and old_norm:
        nodes[name] = norms.call(name, op, target, args, kwargs)
    else:
        function = vocabulary.functions()[target] if op == "call_function" else target
        nodes[name] = graph.create_node(op, function, args, kwargs, name)
    if nodes[name].name != name:
        raise SurgeryError("a name that Python or another node has")


def _check_ends(graph: fx.Graph) -> None:
    """One output, at the end, that gives one value; inputs of names of their own."""
    ends = [node for node in graph.nodes if node.op == "output"]
    if len(ends) != 1 or next(iter(reversed(graph.nodes))) is not ends[0]:
        raise SurgeryError("expected one output, at the end")
    if len(ends[0].args) != 1 or ends[0].kwargs:
        raise SurgeryError(f"the output has {len(ends[0].args)} values, expected one")
    takes = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    if len({*takes}) != len(takes):
        raise SurgeryError("two inputs have one name")


def _layer(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A layer without values: its tensors are on the meta device until they are put in."""
    with torch.device("meta"):
        return vocabulary.module_classes()[name](**arguments)

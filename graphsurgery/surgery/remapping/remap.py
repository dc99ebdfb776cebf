"""The only code that resizes anything: tensors, module attributes, literals in the graph."""

from __future__ import annotations

import dataclasses
import operator
import re
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from graphsurgery.axes.algebra import Axis, Dim
from graphsurgery.axes.kept import settle
from graphsurgery.axes.maps import ChannelMap, Edit, MapInGroups
from graphsurgery.axes.types import ParameterType, Resize, TensorType, Typing
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph, Origin
from graphsurgery.network.assembly import Nodes, assembled
from graphsurgery.network.copying import copy_module, is_parameter, laid_out_like
from graphsurgery.network.layers import hold, pick
from graphsurgery.network.paths import has_tensors, modules_of, place_of
from graphsurgery.network.values.evaluation import evaluate
from graphsurgery.surgery.remapping.gathering import gather
from graphsurgery.surgery.remapping.kept_numbers import KeptNumbers, same

NewTensor = Callable[[ParameterType, Tensor], Tensor]


def remap(graph: ModelGraph, maps: Mapping[Dim, ChannelMap | MapInGroups], record: Mapping[str, Any]) -> ModelGraph:
    """Apply channel maps to a whole network.

    Parameters that write a mapped space are gathered, those that read it are gathered and scaled by the shares. A map
    in groups needs every tensor to tell the groups of its channels; see `nesting`.

    Args:
        graph: typed network; it is not modified.
        maps: a map for each dim that changes.
        record: what to add to the lineage.
    """
    edit = Edit(maps)
    _check_shares(graph, maps)
    new = rebuild(graph, edit, lambda typed, tensor: gather(edit, typed, tensor, typed.reads), record)
    return follow(graph, new, edit)


def follow(before: ModelGraph, after: ModelGraph, edit: Edit) -> ModelGraph:
    """The same network, which knows how it was made from another one."""
    types = before.types
    origin = Origin(
        module=weakref.ref(before.module),
        before=before.origin,
        parameters=types.parameters,
        canonical=types.canonical,
        spaces={space.dim: space.name for space in before.spaces},
        folded=folded(before),
        edit=edit,
    )
    return dataclasses.replace(after, origin=origin)


def folded(graph: ModelGraph) -> dict[str, dict[int, Axis]]:
    """The axes of parameters, by name and number, that a factor on what they read is folded into, and what they read.

    Those inside of layers are among them; see `ParameterType.reads`.
    """
    found: dict[str, dict[int, Axis]] = {}
    for access in graph.types.readers:
        if access.weight is not None and access.weighted:
            found.setdefault(access.weight[0], {})[access.weight[1]] = access.axis
    return found


_NUMBERED = re.compile(r"_\d+$")


def _check_shares(graph: ModelGraph, maps: Mapping[Dim, ChannelMap | MapInGroups]) -> None:
    scaled = {dim for dim, channel_map in maps.items() if channel_map.share is not None}
    for space in graph.spaces:
        if space.dim in scaled and not space.scalable:
            raise SurgeryError(f"space {space.name} is read without weights, so shares cannot be folded into a reader")


def rebuild(
    graph: ModelGraph,
    resize: Resize,
    new_tensor: NewTensor,
    record: Mapping[str, Any] | None = None,
    left: Collection[fx.Node] = frozenset(),
) -> ModelGraph:
    """A new network with the same structure and other sizes.

    Args:
        graph: typed network; it is not modified.
        resize: the new size of every axis.
        new_tensor: the new parameter or buffer, from its type and its old value.
        record: what to add to the lineage.
        left: nodes that are left as they are, as the caller puts others in their place.
    """
    types = graph.types
    nodes = Nodes()
    parts = _Parts(graph, resize, new_tensor, left)
    copies: dict[fx.Node, fx.Node] = {}
    originals: dict[fx.Node, fx.Node] = {}
    kept = KeptNumbers(types.types, copies)
    variances = {mixing.node for mixing in types.mixings if mixing.kind == "variance"}
    with torch.no_grad():
        for node in graph.module.graph.nodes:
            copy = nodes.node_copy(node, copies.__getitem__)
            copies[node] = copy
            originals[copy] = node
            if node in left:
                copy.meta["value"] = _resized(node.meta["value"], types.types[node], resize)
            else:
                kept.keep(node, types.sized.get(node, ()))
                for rewrite in types.rewrites.get(node, ()):
                    rewrite(copy, resize)
                copy.meta["value"] = _new_value(node, copy, types, resize)
                if node in variances:
                    _check_variance(node, copy)
            parts.add(node)
    settle(nodes)
    erase_unused_numbers(nodes)
    _keep_names(nodes, originals)
    module = assembled(parts.made, nodes, type(graph.module).__name__)
    _keep_modes(parts.old, module)
    lineage = graph.lineage if record is None else (*graph.lineage, dict(record))
    return ModelGraph(module, graph.inputs, lineage)


class _Parts:
    """The layers and tensors of a rebuilt network; what is tied stays tied.

    Attributes:
        old: the modules of the network before, by their paths.
        made: what stands at each path now.
    """

    def __init__(self, graph: ModelGraph, resize: Resize, new_tensor: NewTensor, left: Collection[fx.Node]) -> None:
        self.types, self.resize, self.new_tensor = graph.types, resize, new_tensor
        self.old = modules_of(graph.module)
        self.made: dict[str, Any] = {}
        self._names = {id(tensor): self.types.canonical[name] for name, tensor in graph.tensors().items()}
        self._tensors: dict[str, Tensor] = {}
        layers = [node for node in graph.module.graph.nodes if node.op == "call_module"]
        self._untouched = {node.target for node in layers} - {node.target for node in layers if node not in left}

    def add(self, node: fx.Node) -> None:
        """Make what a node needs, if it needs something that is not there yet."""
        path = str(node.target)
        if path in self.made:
            return
        if node.op == "get_attr":
            prefix, _, name = path.rpartition(".")
            part = getattr(self.old[prefix], name)
            self.made[path] = self._tensor(part) if path in self.types.canonical else part
        elif node.op == "call_module":
            self.made[path] = copy_module(self.old[path], self._tensor)
            for change in self.types.attributes.get(path, ()) if path not in self._untouched else ():
                change(self.made[path], self.resize)

    def _tensor(self, old: Tensor) -> Tensor:
        """The new parameter or buffer in the place of an old one."""
        name = self._names[id(old)]
        if name not in self._tensors:
            typed = self.types.parameters.get(name)
            new = old.detach().clone() if typed is None else laid_out_like(self.new_tensor(typed, old.detach()), old)
            self._tensors[name] = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter(old) else new
        return self._tensors[name]


def _keep_modes(old: Mapping[str, nn.Module], new: fx.GraphModule) -> None:
    """Train and eval modes and non-persistent buffers stay what they were."""
    for path, module in modules_of(new).items():
        if path in old:
            module.__dict__["training"] = old[path].training
            if transient := old[path]._non_persistent_buffers_set:
                module._non_persistent_buffers_set.update(transient & set(module._buffers))


def _numbers(node: fx.Node) -> list[fx.Node]:
    """What a node reads besides tensors."""
    return [source for source in node.all_input_nodes if not has_tensors(source.meta["value"])]


def _new_value(node: fx.Node, copy: fx.Node, types: Typing, resize: Resize) -> Any:
    """The value of a rebuilt node: tensors as their types say, sizes computed anew and compared with the types."""
    old = node.meta["value"]
    if node.op in ("placeholder", "output") or (node.op == "call_module" and not has_tensors(old)):
        return old
    if not has_tensors(old):
        return _computed(copy)
    predicted = _resized(old, types.types[node], resize)
    kept = any(user.target is pick for user in copy.users)  # it computes at the old size
    if node.op in ("call_method", "call_function") and _numbers(node) and not kept:
        _compare(node, predicted, _computed(copy))
    return predicted


def _check_variance(node: fx.Node, copy: fx.Node) -> None:
    """Of a single number there is no variance but NaN, unless it is divided by how many there are.

    Raises:
        SurgeryError: too few channels are left.
    """
    if copy.kwargs.get("correction", 1) == 0 or False in (copy.kwargs.get("unbiased"), *copy.args[2:3]):
        return
    before, after = (_numbers_in_each(n) for n in (node, copy))
    if after < 2 <= before:
        raise SurgeryError(
            f"{place_of(node)}: takes a variance over {before} numbers, of which 1 would be left, and that has none;"
            " keep more channels of the spaces that it reads"
        )


def _numbers_in_each(node: fx.Node) -> int:
    """How many numbers of its input go into each number that a node gives."""
    given, found = node.all_input_nodes[0].meta["value"], tree_leaves(node.meta["value"])[0]
    return int(given.numel() // max(1, found.numel()))


class _Unknown:
    """The value of a number that cannot be computed from the new sizes; whoever needed it keeps its old value."""


def _computed(node: fx.Node) -> Any:
    """The value of a node whose inputs are known, where sizes are computed from sizes."""
    try:
        return evaluate(node, _no_attribute)
    except (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError):
        return _Unknown()


def _no_attribute(path: str) -> Any:
    raise SurgeryError(f"{path}: a module between sizes")


def erase_unused_numbers(graph: fx.Graph) -> None:
    """Sizes that nobody asks for any more go, which might not even be computable, and checks of changed widths."""
    for node in reversed(list(graph.nodes)):
        number = node.op in ("call_function", "call_method") and not has_tensors(node.meta["value"])
        if node.target is hold:
            found: Any = node.args[0]
            stands = isinstance(found, fx.Node) and same(found.meta["value"], node.args[1])
        else:
            stands = bool(node.users) or node.target is operator.setitem
        if number and not stands:
            graph.erase_node(node)


def _keep_names(graph: fx.Graph, originals: Mapping[fx.Node, fx.Node]) -> None:
    """A copy has the name of its original; nodes that rewrites have made take names that are left over.

    The names are given out anew, so that the graph knows which are taken when a pass inserts nodes.
    """
    named = (node in originals and node.name == originals[node].name for node in graph.nodes)
    if len(graph.nodes) == len(originals) and all(named):
        return
    names = graph._graph_namespace = type(graph._graph_namespace)()
    made = [node for node in graph.nodes if node not in originals]
    for copy in graph.nodes:
        if copy in originals:
            copy.name = names.create_name(originals[copy].name, copy)
    for node in made:
        node.name = names.create_name(_NUMBERED.sub("", node.name), node)


def _resized(value: Any, typed: Any, resize: Resize) -> Any:
    if isinstance(value, Tensor):
        assert isinstance(typed, TensorType)
        return torch.empty([resize.size(axis) for axis in typed.axes], dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return tuple(_resized(v, t, resize) for v, t in zip(value, typed, strict=True))
    if isinstance(value, Mapping):
        return {key: _resized(v, typed[key], resize) for key, v in value.items()}
    return value


def _compare(node: fx.Node, predicted: Any, computed: Any) -> None:
    if isinstance(computed, _Unknown):
        raise SurgeryError(f"{node.name}: its sizes do not follow the new widths; leave out the spaces that it touches")
    if isinstance(predicted, Tensor):
        if predicted.shape != computed.shape:
            raise SurgeryError(
                f"{node.name}: its computed sizes give {tuple(computed.shape)} where the types say"
                f" {tuple(predicted.shape)}; leave out the spaces that it touches"
            )
    elif isinstance(predicted, tuple):
        for p, c in zip(predicted, computed, strict=True):
            _compare(node, p, c)

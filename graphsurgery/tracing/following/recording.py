"""A tracer that records nodes and computes the value of each on meta tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace as fx_trace

from graphsurgery.network.assembly import Nodes
from graphsurgery.network.copying import meta_of
from graphsurgery.network.outputs.records import with_records
from graphsurgery.network.paths import OF_EVERY_MODULE
from graphsurgery.network.values.evaluation import evaluate
from graphsurgery.tracing.following.decisions import HoldingTracer
from graphsurgery.tracing.following.effects import NO_GRADIENT
from graphsurgery.tracing.following.proxies import ValueProxy, proxy_of

_CALL = nn.Module._call_impl
_FILLING = frozenset({"new_full", "fill_", torch.full, torch.full_like, torch.fill})
"""What fills a tensor with one number."""


class RecordingTracer(HoldingTracer):
    """Gives every node its value.

    Args:
        opaque: paths of submodules that are kept whole because their forward cannot be followed, with the reason.
        identities: paths of submodules without weights that are kept whole because they only act in training.

    Attributes:
        names: the name of each parameter and buffer, by its id.
        modules: the modules of the network, by their paths.
        kept_functions: why functions are kept whole, by the paths of the modules that they have become.
        evaluating: whether a value is computed right now, so that nothing is recorded.
    """

    def __init__(self, *, opaque: Mapping[str, str], identities: Iterable[str], **options: Any) -> None:
        super().__init__(**options)
        self.opaque, self.identities = opaque, set(identities)
        self.names: dict[int, str] = {}
        self.modules: dict[str, nn.Module] = {}
        self.kept_functions: dict[str, str] = {}
        self.evaluating = False

    def trace(self, root: nn.Module) -> fx.Graph:  # type: ignore[override]
        """As fx does, which replaces special methods of `nn.Module`: each time hundreds of classes are changed."""
        self.root, self.root_module_name = root, root._get_name()
        self.submodule_paths = {
            module: path for path, module in reversed(self.modules.items())
        }  # the first path counts
        self.graph = Nodes(tracer_cls=type(self))
        attributes = [
            (f"{path}.{name}".lstrip("."), vars(m)[name])
            for path, m in self.modules.items()
            for name in vars(m)
            if name not in OF_EVERY_MODULE
        ]
        self.tensor_attrs = {
            value: name for name, value in attributes if isinstance(value, fx_trace._constant_attribute_types)
        }
        inputs = self.inputs()

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            space = getattr(getattr(module, "forward", module), "__globals__", {})
            self._record_functions(patcher, space)
            return self.call_module(module, partial(_CALL, module), args, kwargs)

        tracing = fx_trace._get_is_fx_tracing()
        fx_trace._set_is_fx_tracing(True)
        try:
            with fx_trace._new_patcher() as patcher:
                patcher.patch_method(nn.Module, "_call_impl", call, deduplicate=False)
                fx_trace._patch_wrapped_functions(patcher)
                for searched in self._autowrap_search:
                    self._record_functions(patcher, vars(searched))
                self.create_node("output", "output", (self.create_arg(root(*inputs)),), {})
        finally:
            fx_trace._set_is_fx_tracing(tracing)
        return self.graph

    def _record_functions(self, patcher: Any, space: dict[str, Any]) -> None:
        """As `_autowrap_check` of fx, which makes what records each function of `math` anew in every trace."""
        if patcher.visit_once(space):
            for name, value in space.items():
                if id(value) in self._autowrap_function_ids and not name.startswith("_") and callable(value):
                    patcher.patch(space, name, _recording(value))

    def inputs(self) -> Sequence[ValueProxy | None]:
        """An input for each example."""
        raise NotImplementedError

    def proxy(self, node: fx.Node) -> ValueProxy:
        self.value_at(node)
        return proxy_of(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> fx.Node:
        """As fx does, but without a record of the modules that were running, which costs more the deeper they nest."""
        if kind == "output":
            args = tuple(with_records(part, self.graph) for part in args)
        node = self.graph.create_node(kind, target, args, kwargs, *more, **options)
        if not torch.is_grad_enabled():
            node.meta[NO_GRADIENT] = True
        return node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> ValueProxy:
        """Record a node and compute its value."""
        if target in _FILLING:
            args, kwargs = tuple(map(_filling, args)), {name: _filling(value) for name, value in kwargs.items()}
        named = self.create_arg(kwargs) if kwargs else {}
        node = self.create_node(kind, target, self.create_arg(args), named, *more, **options)
        return self.proxy(node)

    def value_at(self, node: fx.Node) -> Any:
        """The value of a node, computed with those of all that it reads."""
        if "value" not in node.meta:
            for source in node.all_input_nodes:
                if "value" not in source.meta:
                    self.value_at(source)
            self.evaluating = True
            try:
                node.meta["value"] = self._evaluate(node)
            finally:
                self.evaluating = False
        return node.meta["value"]

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            path = str(node.target)
            if path in self.identities:
                node.meta["identity"] = True
                return node.args[0].meta["value"]  # type: ignore[union-attr]
            for reasons in (self.opaque, self.kept_functions):
                if path in reasons:
                    node.meta["unfollowed"] = reasons[path]
        return evaluate(node, self._attribute)

    def _attribute(self, path: str) -> Any:
        if path in self.modules:
            return self.modules[path]
        parent, _, name = path.rpartition(".")
        found = getattr(self.root.get_submodule(parent), name)
        return meta_of(found) if isinstance(found, Tensor) and not found.is_meta else found

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:  # noqa: ARG002
        """Parameters and buffers become nodes, found by identity in constant time."""
        if self.evaluating or not isinstance(attr_val, Tensor):
            return attr_val
        name = self.names.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]


@functools.cache
def _recording(function: Any) -> Any:
    return fx_trace._create_wrapped_func(function)


def _filling(argument: Any) -> Any:
    """A number that a plain attribute holds as a tensor is that number: on meta tensors nobody could read it."""
    constant = isinstance(argument, Tensor) and not issubclass(type(argument), fx.Proxy)
    return argument.item() if constant and argument.dim() == 0 and not argument.is_meta else argument

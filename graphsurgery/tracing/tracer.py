"""The tracer: fx's, with proxies that carry the meta value of their node (`proxies`).

Questions of the model are answered from the value, while sizes stay symbolic, so that the graph takes other batch
sizes. What was decided by a size is held.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import operator
import random
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace as fx_trace
from torch.nn.modules import module as nn_module
from torch.overrides import get_overridable_functions

from graphsurgery import errors
from graphsurgery.errors import TraceError
from graphsurgery.network import layers
from graphsurgery.network.aliasing import acts_in_place, makes_new
from graphsurgery.network.copying import meta_of
from graphsurgery.network.custom_gradients import KeptFunction, call_inline, has_own_gradient
from graphsurgery.network.layers import TrainingFlag, hold
from graphsurgery.network.paths import has_tensors, modules_of, named_tensors
from graphsurgery.network.values import evaluate
from graphsurgery.tracing import proxies
from graphsurgery.tracing.leaves import has_hooks, is_leaf
from graphsurgery.tracing.modes import FLAG
from graphsurgery.tracing.proxies import DEVICE, LITERALS, DecidingTracer, ValueProxy, is_instance, proxy_of, value_of
from graphsurgery.tracing.questions import truthful
from graphsurgery.tracing.shifted_windows import REPLACEMENTS

_COMPARISONS: tuple[Any, ...] = (operator.eq, operator.ne)
_FACTORIES = (
    "zeros", "ones", "full", "empty", "arange", "linspace", "logspace", "tensor", "as_tensor", "scalar_tensor", "eye",
    "tril_indices", "triu_indices", "finfo", "iinfo",
)  # fmt: skip
_RANDOM = ("rand", "randn", "randint", "randperm", "normal")
"""Factories that draw: recorded even where nothing that they are given comes from an input."""


class Mode:
    """Stands for `self.training` of a module that is traced through.

    Handed on as an argument it becomes a node that gives the module's mode; asked for its truth it answers with the
    mode of the trace, and the tracer remembers that the graph depends on it.
    """

    def __init__(self, tracer: ValueTracer, path: str) -> None:
        self.tracer = tracer
        self.path = path

    def __bool__(self) -> bool:
        self.tracer.branches.append(_asking_line())
        return self.tracer.training


_NO_GRADIENT = "no gradient"
_GLOBAL_HOOKS = tuple(name for name in vars(nn_module) if name.startswith("_global_") and name.endswith("_hooks"))


class UnfollowedError(TraceError):
    """A submodule whose forward cannot be followed.

    Attributes:
        path: of the innermost module that raised; empty for the network itself.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ValueTracer(DecidingTracer):
    """Records a forward while computing it on meta tensors.

    Args:
        examples: meta tensors, one for each input.
        training: the mode to trace in.
        strict: whether a size that the model writes into a text is a decision too; where it is only the message of an
            assertion, that would refuse other sizes for nothing.
        opaque: paths of submodules that are kept whole because their forward cannot be followed, with the reason.
        identities: paths of submodules without weights that are kept whole because they only act in training.
    """

    proxy_buffer_attributes = True
    traced_func_name = "_call_impl"  # plain on every module, while a forward may be decorated or an object

    def __init__(
        self,
        examples: Sequence[Tensor],
        *,
        training: bool = False,
        strict: bool = False,
        opaque: Mapping[str, str] = MappingProxyType({}),
        identities: Iterable[str] = (),
    ) -> None:
        # Our own functions are operators with rules of their own.
        own = tuple(f for f in (getattr(layers, name) for name in layers.__all__) if not isinstance(f, type))
        super().__init__(autowrap_functions=(torchvision.ops.stochastic_depth, *own))
        # Its body returns the input in eval mode; kept whole, it becomes a module that follows the mode.
        self._autowrap_search += [torchvision.ops, layers]
        self.examples = list(examples)
        self.training = training
        self.strict = strict
        self.opaque = opaque
        self.identities = set(identities)
        self.branches: list[str] = []
        self.spelled_out: list[str] = []
        self.names: dict[int, str] = {}
        self.evaluating = False
        self.failed: str | None = None
        self._arguments: list[str] = []
        self._flags: dict[str, ValueProxy] = {}
        self._modules: dict[str, nn.Module] = {}
        self._kinds: dict[type, bool] = {}
        self._decisions: set[fx.Node] = set()
        self._indices: list[tuple[fx.Proxy, int, int, str]] = []
        self._functions = 0
        self.kept_functions: dict[str, str] = {}
        self._precision = _autocast()

    def follow(self, root: nn.Module) -> fx.Graph:
        """Trace `root`; arguments without an example keep their defaults."""
        self._check_arguments(root)
        self.names = {id(tensor): name for name, tensor in named_tensors(root).items()}
        self._modules = modules_of(root)
        slots = [slots for module in root.modules() for slots in (module.__dict__, module._buffers)]
        kept = [dict(values) for values in slots]
        followed = list(self._set_modes(root))
        drawn = _generator_states()
        try:
            with torch.enable_grad(), self._patched(), truthful():
                graph = self.trace(root)
                self._decide_indices(graph)
                for node in graph.nodes:
                    self._value(node)
            if not _same_states(drawn, _generator_states()):
                raise TraceError("draws random numbers outside the graph, which would keep those of the trace")
        except Exception as error:
            raise UnfollowedError(_where(error, root), self.failed or "") from error
        finally:
            for module in followed:
                module.__dict__["training"] = False
            for values, before in zip(slots, kept, strict=True):
                _restore(values, before)
        _cut_gradients(graph)
        _own_constants(graph, root)
        return graph

    def _check_arguments(self, root: nn.Module) -> None:
        """Refuse inputs that the forward does not take."""
        kind = type(root).__name__
        if any(nn_module.__dict__[name] for name in _GLOBAL_HOOKS):
            raise TraceError(f"{kind}: hooks are registered for every module, which a trace leaves out; remove them")
        parameters = inspect.signature(root.forward).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if any(p.kind == p.VAR_POSITIONAL for p in parameters):
            self._arguments = [*(p.name for p in positional), *(f"input_{i}" for i in range(len(self.examples)))]
            return
        if len(positional) < len(self.examples):
            raise TraceError(f"{kind}.forward takes {len(positional)} inputs, {len(self.examples)} given")
        for parameter in [*positional[len(self.examples) :], *(p for p in parameters if p.kind == p.KEYWORD_ONLY)]:
            if parameter.default is parameter.empty:
                raise TraceError(f"{kind}.forward needs an example for its argument {parameter.name}")
        self._arguments = [parameter.name for parameter in positional]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:  # noqa: ARG002
        """An input for each example; the model is called as everybody calls it, hooks included."""
        inputs = []
        for name, example in zip(self._arguments, self.examples, strict=False):
            node = self.create_node("placeholder", name, (), {})
            node.meta["value"] = example
            inputs.append(self.proxy(node))

        def call(*args: Any) -> Any:
            return self.root(*args)

        return call, inputs

    def _set_modes(self, root: nn.Module, path: str = "") -> Iterator[nn.Module]:
        """Let every module that is traced through answer for its mode."""
        root.__dict__["training"] = Mode(self, path)
        yield root
        for name, child in root.named_children():
            below = f"{path}.{name}" if path else name
            if not self.is_leaf_module(child, below):
                yield from self._set_modes(child, below)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.opaque or module_qualified_name in self.identities:
            return True
        if "forward" in m.__dict__:
            return False
        kind = type(m)
        if kind not in self._kinds:
            self._kinds[kind] = is_leaf(m)
        return self._kinds[kind]

    def create_arg(self, a: Any) -> Any:
        """A mode that is handed on becomes a node. The most common kinds of argument come first."""
        kind = type(a)
        if kind is ValueProxy:
            return a.node
        if kind in LITERALS:
            return a
        if kind is tuple:
            return tuple([self.create_arg(item) for item in a])
        if issubclass(kind, fx.Proxy):
            return a.node  # before fx asks whether it is a tensor, which it says it is
        return self._flag(a.path).node if kind is Mode else super().create_arg(a)

    def _flag(self, owner: str) -> ValueProxy:
        """The node that gives the mode of a module."""
        path = f"{owner}.{FLAG}" if owner else FLAG
        if path not in self._flags:
            module = self.root.get_submodule(owner)
            if not hasattr(module, FLAG):
                module.add_module(FLAG, TrainingFlag())
            self._flags[path] = self.create_proxy("call_module", path, (), {})
        return self._flags[path]

    def proxy(self, node: fx.Node) -> ValueProxy:
        self._value(node)
        return proxy_of(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> fx.Node:
        """As fx does, but without a record of the modules that were running, which costs more the deeper they nest."""
        node = self.graph.create_node(kind, target, args, kwargs, *more, **options)
        if not torch.is_grad_enabled():
            node.meta[_NO_GRADIENT] = True
        return node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> ValueProxy:
        """Record a node and compute its value."""
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs), *more, **options)
        return self.proxy(node)

    def _value(self, node: fx.Node) -> Any:
        if "value" not in node.meta:
            for source in node.all_input_nodes:
                self._value(source)
            self.evaluating = True
            try:
                with torch.no_grad():
                    node.meta["value"] = self._evaluate(node)
            finally:
                self.evaluating = False
        return node.meta["value"]

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "call_module" and str(node.target) in self.identities:
            node.meta["identity"] = True
            return node.args[0].meta["value"]  # type: ignore[union-attr]
        if node.op == "call_module" and str(node.target) in self.opaque:
            node.meta["unfollowed"] = self.opaque[str(node.target)]
        if node.op == "call_module" and str(node.target) in self.kept_functions:
            node.meta["unfollowed"] = self.kept_functions[str(node.target)]
        return evaluate(node, self._attribute)

    def _attribute(self, path: str) -> Any:
        if path in self._modules:
            return self._modules[path]
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

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.evaluating or m is self.root:
            return forward(*args, **kwargs)
        asked = len(self.branches)
        path = self.path_of_module(m)
        self._check_precision()
        try:
            if self.is_leaf_module(m, path):
                leaf = path not in self.opaque and has_hooks(m)
                return self._between_hooks(m, path, forward, args, kwargs) if leaf else self._leaf(path, args, kwargs)
            result = forward(*args, **kwargs)
        except Exception:
            if self.failed is None and path not in self.opaque:
                self.failed = path
            raise
        if len(self.branches) > asked and len(args) == 1 and result is args[0] and not m._modules and _is_bare(m):
            # It acts in training only and has no weights, as drop-path: kept whole, it follows the mode.
            self.identities.add(path)
            result = self.create_proxy("call_module", path, args, kwargs)
        return result

    def _leaf(self, path: str, args: Any, kwargs: Any) -> Any:
        return self.create_proxy("call_module", path, args, kwargs)

    def _between_hooks(self, m: nn.Module, path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A layer that is kept whole, after its pre-hooks and before its hooks, which are followed.

        Where a hook has put another weight into the layer, the layer is followed as well.
        """
        tensors = {name: id(t) for slots in (m._parameters, m._buffers) for name, t in slots.items()}

        def layer(*inner: Any, **named: Any) -> Any:
            same = all(id(m._parameters.get(n, m._buffers.get(n))) == i for n, i in tensors.items())
            if same and not any(isinstance(value, fx.Proxy) for value in m.__dict__.values()):
                return self._leaf(path, inner, named)
            return type(m).forward(m, *inner, **named)

        m.__dict__["forward"] = layer
        try:
            return forward(*args, **kwargs)
        finally:
            del m.__dict__["forward"]

    def _custom(self, function: Any, args: Any, kwargs: Any) -> Any:
        """A function with a backward: followed if that is what autograd finds, else a module that is kept whole."""
        values = fx.node.map_aggregate((args, kwargs), lambda a: value_of(a) if isinstance(a, fx.Proxy) else a)
        self.evaluating = True  # what is drawn in order to find out is no part of the network
        try:
            own = has_own_gradient(function, *values)
        finally:
            self.evaluating = False
        if not own:
            return call_inline(function, args, kwargs)
        self._functions += 1
        path = f"{function.__name__.lower()}_{self._functions}"
        while hasattr(self.root, path):
            path += "_"
        self.root.add_module(path, KeptFunction(function))
        self._modules[path] = self.root.get_submodule(path)
        self.kept_functions[path] = f"{function.__name__} has a gradient of its own"
        return self._leaf(path, args, kwargs)

    def _check_precision(self) -> None:
        """Refuse a part of the model that asks for another precision than what surrounds it."""
        if self._precision != _autocast():
            raise TraceError("computes under torch.autocast, which a graph would leave out")

    def spelled(self, proxy: fx.Proxy) -> None:
        """The model wrote a size into a text."""
        if self.strict:
            self.decided(proxy)
        else:
            self.spelled_out.append(_asking_line())

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer a condition from the value; conditions on data cannot be answered."""
        value = value_of(obj)
        if isinstance(value, Tensor):
            raise TraceError("control flow depends on the values of a tensor")
        if _compares_devices(obj.node):
            assert callable(obj.node.target)
            return bool(obj.node.target(*(_on_cpu(operand) for operand in obj.node.args)))
        self.decided(obj)
        return bool(value)

    def decided(self, proxy: fx.Proxy, line: str | None = None) -> None:
        """The model decided by this number, so the graph is right only where it is the same.

        A network may be cast and moved: what was decided by a precision or a device stands, and of a dtype it is
        checked whether it holds numbers or indices.
        """
        value = value_of(proxy)
        if proxy.node in self._decisions or not isinstance(value, (bool, int, float)):
            return
        self._decisions.add(proxy.node)
        dtypes = [source for source in proxy.node.all_input_nodes if isinstance(source.meta["value"], torch.dtype)]
        for source in dtypes:
            floating = self.create_proxy("call_function", getattr, (self.proxy(source), "is_floating_point"), {})
            self._hold(floating, line or _asking_line())
        if not dtypes and not _compares_devices(proxy.node):
            self._hold(proxy, line or _asking_line())

    def _hold(self, proxy: fx.Proxy, line: str) -> None:
        self.create_proxy("call_function", hold, (proxy, value_of(proxy), line), {})

    def indexed(self, proxy: fx.Proxy, frame: FrameType) -> None:
        """A number was asked for as a Python integer, by Python (`range(n)`) or by a function of torch."""
        self._indices.append((proxy, id(frame), frame.f_lasti, _asking_line()))

    def settle(self, frame: FrameType) -> None:
        """A function of torch hands over; the numbers that the same call has asked for decided nothing."""
        call = (id(frame), frame.f_lasti)
        while self._indices and self._indices[-1][1:3] == call:
            self._indices.pop()

    def _decide_indices(self, graph: fx.Graph) -> None:
        """Hold what Python has asked for."""
        output = next(node for node in reversed(graph.nodes) if node.op == "output")
        with graph.inserting_before(output):
            for proxy, _, _, line in self._indices:
                self.decided(proxy, line)
        self._indices.clear()

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        """Record tensor factories that are given proxies, and follow functions that fx would keep whole.

        Some functions of torchvision that decide by sizes are followed in another form (`shifted_windows`).
        """
        get_overridable_functions()  # torch keeps the list that it makes at the first call: not one of the replacements
        wrapped = dict(fx_trace._wrapped_fns_to_patch)
        fx_trace._wrapped_fns_to_patch.clear()
        factories = [(torch, name, self._recording(getattr(torch, name))) for name in _FACTORIES]
        draws = [(torch, name, self._recording(getattr(torch, name), always=True)) for name in _RANDOM]
        asked = (torch, "is_tensor", lambda candidate: is_instance(candidate, Tensor))
        replacements = [*factories, *draws, asked, *REPLACEMENTS]
        originals = [(home, name, getattr(home, name)) for home, name, _ in replacements]
        for home, name, function in replacements:
            setattr(home, name, function)
        apply = torch.autograd.Function.__dict__["apply"]
        torch.autograd.Function.apply = classmethod(self._applying(apply))
        try:
            yield
        finally:
            torch.autograd.Function.apply = apply
            for home, name, original in originals:
                setattr(home, name, original)
            fx_trace._wrapped_fns_to_patch.update(wrapped)

    def _recording(self, original: Callable[..., Any], *, always: bool = False) -> Callable[..., Any]:
        def factory(*args: Any, **kwargs: Any) -> Any:
            if not self.evaluating and (always or _has_proxies(args, kwargs)):
                return self.create_proxy("call_function", original, args, kwargs)
            return original(*args, **kwargs)

        return factory

    def _applying(self, original: Any) -> Callable[..., Any]:
        def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.evaluating and _has_proxies(args, kwargs):
                return self._custom(function, args, kwargs)
            return original.__get__(None, function)(*args, **kwargs)

        return apply


def _has_proxies(args: Any, kwargs: Any) -> bool:
    found: list[fx.Proxy] = []
    fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, fx.Proxy) else None)
    return bool(found)


def _cut_gradients(graph: fx.Graph) -> None:
    """What was computed without gradients is detached where something with gradients, or the caller, reads it."""
    for node in list(graph.nodes):
        if _NO_GRADIENT not in node.meta or node.op in ("get_attr", "placeholder", "output"):
            continue
        readers = [user for user in node.users if _NO_GRADIENT not in user.meta or user.op == "output"]
        if not readers or not has_tensors(node.meta["value"]):
            continue
        cut = _detached(graph, node)
        for reader in readers:
            if reader not in cut:
                _read_instead(reader, {node: cut[node]})


def _read_instead(reader: fx.Node, others: Mapping[fx.Node, Any]) -> None:
    reader.args, reader.kwargs = fx.map_arg((reader.args, reader.kwargs), lambda node: others.get(node, node))


def _detached(graph: fx.Graph, node: fx.Node) -> dict[fx.Node, Any]:
    """What stands for a node, and for all that it takes to make that, where its gradient is cut."""
    value = node.meta["value"]
    if isinstance(value, Tensor):
        with graph.inserting_after(node):
            new = graph.call_method("detach", (node,))
        new.meta["value"] = value
        return {node: new, new: new}
    made: dict[fx.Node, Any] = {}
    parts = []
    keys = list(value) if isinstance(value, Mapping) else range(len(value))
    last = node
    for key in keys:
        with graph.inserting_after(last):
            part = graph.call_function(operator.getitem, (node, key))
        part.meta = {"value": value[key], _NO_GRADIENT: True}
        below = _detached(graph, part) if has_tensors(value[key]) else {part: part}
        made |= below | {part: below[part]}
        parts.append(below[part])
        last = part
    made[node] = dict(zip(keys, parts, strict=True)) if isinstance(value, Mapping) else tuple(parts)
    return made


def _own_constants(graph: fx.Graph, root: nn.Module) -> None:
    """A tensor that the forward makes and then writes into is a new one in every call."""
    written = set()
    for node in graph.nodes:
        if node.all_input_nodes and acts_in_place(root, node):
            base = node.all_input_nodes[0]
            while base.all_input_nodes and not makes_new(root, base):
                base = base.all_input_nodes[0]
            if base.op == "get_attr" and str(base.target).startswith("_tensor_constant"):
                written.add(base.target)
    for name in written:
        first, *others = [node for node in graph.nodes if node.op == "get_attr" and node.target == name]
        with graph.inserting_after(first):
            clone = graph.call_method("clone", (first,))
        clone.meta["value"] = first.meta["value"]
        readers = dict.fromkeys(user for node in (first, *others) for user in node.users if user is not clone)
        for reader in readers:
            _read_instead(reader, dict.fromkeys((first, *others), clone))


def _autocast() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


def _generator_states() -> tuple[Any, ...]:
    """The states of what Python, NumPy and torch draw from."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _same_states(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    python, (name, keys, *rest), own = before
    return (
        python == after[0]
        and (name, *rest) == (after[1][0], *after[1][2:])
        and bool((keys == after[1][1]).all())
        and torch.equal(own, after[2])
    )


def _restore(values: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Take back the proxies that a forward has put into a module, such as a table for the size of the last input."""
    for name in [name for name, value in values.items() if isinstance(value, fx.Proxy)]:
        if name in before:
            values[name] = before[name]
        else:
            del values[name]


def _compares_devices(node: fx.Node) -> bool:
    """Whether a node says if two devices are one."""
    return node.target in _COMPARISONS and any(isinstance(_on_cpu(operand), torch.device) for operand in node.args)


def _on_cpu(operand: Any) -> Any:
    """The value of an operand as it is where the tensors of the trace are on the CPU; what is written down stays."""
    if not isinstance(operand, fx.Node):
        return operand
    value = operand.meta["value"]
    return DEVICE if isinstance(value, torch.device) and value.type == "meta" else value


def _is_bare(module: nn.Module) -> bool:
    """Whether a module has no parameters and no buffers of its own."""
    return not any(t is not None for t in (*module._parameters.values(), *module._buffers.values()))


def _asking_line() -> str:
    """The line of the model that asks for something."""
    frame = inspect.currentframe()
    own = (__file__, proxies.__file__, fx.proxy.__file__)
    while frame is not None and frame.f_code.co_filename in own:
        frame = frame.f_back
    if frame is None:
        return "an unknown line"
    path, line = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(path).name}:{line}: `{linecache.getline(path, line).strip()}`"


def _where(error: Exception, root: nn.Module) -> str:
    """The innermost line of the model's own code, and why it could not be followed."""
    own = [str(Path(torch.__file__).parent), str(Path(errors.__file__).parent), "<frozen", "<eval", "<string>"]
    own.append(str(Path(contextlib.__file__)))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(tuple(own))]
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not frames:
        return f"{type(root).__name__}: {reason}"
    frame = frames[-1]
    line = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
    return f"{frame.filename}:{frame.lineno} in {frame.name}: `{line}`: {reason}"

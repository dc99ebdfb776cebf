"""The tracer: fx's, with proxies that carry the meta value of their node.

`bool`, `len`, `iter` and `dim()` are answered from the value, while sizes stay symbolic, so that the graph takes other
batch sizes.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import operator
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace as fx_trace
from torch.overrides import get_overridable_functions

from graphsurgery import layers
from graphsurgery.copying import meta_of
from graphsurgery.errors import TraceError
from graphsurgery.facts import modules_of, named_tensors
from graphsurgery.layers import TrainingFlag, hold
from graphsurgery.leaves import is_leaf
from graphsurgery.modes import FLAG
from graphsurgery.values import evaluate
from graphsurgery.windows import REPLACEMENTS

_LITERALS = frozenset({bool, int, float, str, type(None)})
_DEVICE = torch.device("cpu")
"""Where the model is told to be: a trace runs on meta tensors, for which it might go another way."""
_OF_DEVICES = ("type", "index")
_COMPARISONS: tuple[Any, ...] = (operator.eq, operator.ne)
_FACTORIES = ("zeros", "ones", "full", "empty", "arange", "linspace", "tensor", "rand", "randn", "eye")


class ValueProxy(fx.Proxy):
    """A proxy that knows the meta value of its node."""

    tracer: ValueTracer

    def __getattr__(self, name: str) -> Any:
        if name in _OF_DEVICES and isinstance(value_of(self), torch.device):
            return getattr(_DEVICE, name)
        return ValueAttribute(self, name)

    def __len__(self) -> int:
        value = value_of(self)
        if isinstance(value, Tensor):
            self.tracer.decided(operator.getitem(self.shape, 0))
        return len(value)

    def __iter__(self) -> Iterator[Any]:
        return iter([operator.getitem(self, i) for i in range(len(self))])

    def __contains__(self, item: Any) -> bool:
        value = value_of(self)
        if isinstance(value, Tensor):
            raise TraceError("`in` depends on the values of a tensor")
        return (value_of(item) if isinstance(item, fx.Proxy) else item) in value

    def __index__(self) -> int:
        # Also asked by torch's own functions when they are handed a size, which decides nothing.
        return int(self._number())

    def __int__(self) -> int:
        return int(self._decided())

    def __float__(self) -> float:
        return float(self._decided())

    def _decided(self) -> Any:
        value = self._number()
        self.tracer.decided(self)
        return value

    def _number(self) -> Any:
        value = value_of(self)
        if isinstance(value, Tensor):
            raise TraceError("a number is read out of a tensor, so the graph would depend on the data")
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def dim(self) -> int:
        return value_of(self).dim()

    def ndimension(self) -> int:
        return value_of(self).dim()

    @property
    def ndim(self) -> int:
        return value_of(self).ndim

    def is_floating_point(self) -> bool:
        return value_of(self).is_floating_point()


def _in_place(name: str) -> Callable[[ValueProxy, Any], Any]:
    """`x += y`: tensors are written in place, as in the model; sizes are new numbers."""
    written, new = getattr(operator, f"i{name}"), getattr(operator, name)

    def method(self: ValueProxy, other: Any) -> Any:
        target = written if isinstance(value_of(self), Tensor) else new
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(ValueProxy, f"__i{_name}__", _in_place(_name))


class ValueAttribute(ValueProxy):
    """An attribute of a proxy; a node only if it is used as a value rather than called."""

    def __init__(self, root: ValueProxy, name: str) -> None:
        self.root = root
        self.attr = name
        self.tracer = root.tracer
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


def value_of(proxy: fx.Proxy) -> Any:
    return proxy.node.meta["value"]


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


class UnfollowedError(TraceError):
    """A submodule whose forward cannot be followed.

    Attributes:
        path: of the innermost module that raised; empty for the network itself.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ValueTracer(fx.Tracer):
    """Records a forward while computing it on meta tensors.

    Args:
        examples: meta tensors, one for each input.
        training: the mode to trace in.
        opaque: paths of submodules that are kept whole because their forward cannot be followed, with the reason.
        identities: paths of submodules without weights that are kept whole because they only act in training.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        examples: Sequence[Tensor],
        *,
        training: bool = False,
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
        self.opaque = opaque
        self.identities = set(identities)
        self.branches: list[str] = []
        self.names: dict[int, str] = {}
        self.evaluating = False
        self.failed: str | None = None
        self._flags: dict[str, ValueProxy] = {}
        self._modules: dict[str, nn.Module] = {}
        self._kinds: dict[type, bool] = {}
        self._decisions: set[fx.Node] = set()

    def follow(self, root: nn.Module) -> fx.Graph:
        """Trace `root`; arguments without an example keep their defaults."""
        parameters = [p for p in inspect.signature(root.forward).parameters.values() if p.kind != p.VAR_KEYWORD]
        if any(p.kind == p.VAR_POSITIONAL for p in parameters):
            raise TraceError(f"{type(root).__name__}.forward takes *args; give it named arguments")
        if len(parameters) < len(self.examples):
            raise TraceError(
                f"{type(root).__name__}.forward takes {len(parameters)} inputs, {len(self.examples)} given"
            )
        left_out = parameters[len(self.examples) :]
        for parameter in left_out:
            if parameter.default is parameter.empty:
                raise TraceError(f"{type(root).__name__}.forward needs an example for its argument {parameter.name}")
        self.names = {id(tensor): name for name, tensor in named_tensors(root).items()}
        self._modules = modules_of(root)
        self._waiting = list(self.examples)
        self._defaults = {p.name: p.default for p in left_out}
        slots = [slots for module in root.modules() for slots in (module.__dict__, module._buffers)]
        kept = [dict(values) for values in slots]
        followed = list(self._set_modes(root))
        try:
            with torch.no_grad(), self._patched():
                graph = self.trace(root, dict(self._defaults))
                for node in graph.nodes:
                    self._value(node)
        except Exception as error:
            raise UnfollowedError(_where(error, root), self.failed or "") from error
        finally:
            for module in followed:
                module.__dict__["training"] = False
            for values, before in zip(slots, kept, strict=True):
                _restore(values, before)
        return graph

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
        kind = type(m)
        if kind not in self._kinds:
            self._kinds[kind] = is_leaf(m)
        return self._kinds[kind]

    def create_arg(self, a: Any) -> Any:
        """A mode that is handed on becomes a node. The most common kinds of argument come first."""
        kind = type(a)
        if kind is ValueProxy:
            return a.node
        if kind in _LITERALS:
            return a
        if kind is tuple:
            return tuple([self.create_arg(item) for item in a])
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
        return ValueProxy(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> fx.Node:
        """As fx does, but without a record of the modules that were running, which costs more the deeper they nest."""
        return self.graph.create_node(kind, target, args, kwargs, *more, **options)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> ValueProxy:
        """Record a node and compute its value."""
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs), *more, **options)
        self._value(node)
        return ValueProxy(node, self)

    def _value(self, node: fx.Node) -> Any:
        if "value" not in node.meta:
            for source in node.all_input_nodes:
                self._value(source)
            if node.op == "placeholder":
                # fx also makes an input, `name_1`, of every argument that is left at its default.
                default = self._defaults.get(str(node.target).rpartition("_")[0])
                node.meta["value"] = self._waiting.pop(0) if self._waiting else default
            else:
                self.evaluating = True
                try:
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
        if self.evaluating:
            return forward(*args, **kwargs)
        asked = len(self.branches)
        path = self.path_of_module(m)
        try:
            if self.is_leaf_module(m, path):
                return self.create_proxy("call_module", path, args, kwargs)
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

    def decided(self, proxy: fx.Proxy) -> None:
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
            floating = self.create_proxy("call_function", getattr, (ValueProxy(source, self), "is_floating_point"), {})
            self._hold(floating)
        if not dtypes and not _compares_devices(proxy.node):
            self._hold(proxy)

    def _hold(self, proxy: fx.Proxy) -> None:
        self.create_proxy("call_function", hold, (proxy, value_of(proxy), _asking_line()), {})

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        """Record tensor factories that are given proxies, and follow functions that fx would keep whole.

        Some functions of torchvision that decide by sizes are followed in another form (`windows`).
        """
        get_overridable_functions()  # torch keeps the list that it makes at the first call: not one of the replacements
        wrapped = dict(fx_trace._wrapped_fns_to_patch)
        fx_trace._wrapped_fns_to_patch.clear()
        factories = [(torch, name, self._recording(getattr(torch, name))) for name in _FACTORIES]
        replacements = [*factories, *REPLACEMENTS]
        originals = [(home, name, getattr(home, name)) for home, name, _ in replacements]
        for home, name, function in replacements:
            setattr(home, name, function)
        try:
            yield
        finally:
            for home, name, original in originals:
                setattr(home, name, original)
            fx_trace._wrapped_fns_to_patch.update(wrapped)

    def _recording(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def factory(*args: Any, **kwargs: Any) -> Any:
            found: list[fx.Proxy] = []
            fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, fx.Proxy) else None)
            if found and not self.evaluating:
                return self.create_proxy("call_function", original, args, kwargs)
            return original(*args, **kwargs)

        return factory


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
    return _DEVICE if isinstance(value, torch.device) and value.type == "meta" else value


def _is_bare(module: nn.Module) -> bool:
    """Whether a module has no parameters and no buffers of its own."""
    return not any(t is not None for t in (*module._parameters.values(), *module._buffers.values()))


def _asking_line() -> str:
    """The line of the model that asks for something."""
    frame = inspect.currentframe()
    own = (__file__, fx.proxy.__file__)
    while frame is not None and frame.f_code.co_filename in own:
        frame = frame.f_back
    if frame is None:
        return "an unknown line"
    path, line = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(path).name}:{line}: `{linecache.getline(path, line).strip()}`"


def _where(error: Exception, root: nn.Module) -> str:
    """The innermost line of the model's own code, and why it could not be followed."""
    own = [str(Path(torch.__file__).parent), str(Path(__file__).parent), "<frozen", "<eval", "<string>"]
    own.append(str(Path(contextlib.__file__)))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(tuple(own))]
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not frames:
        return f"{type(root).__name__}: {reason}"
    frame = frames[-1]
    line = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
    return f"{frame.filename}:{frame.lineno} in {frame.name}: `{line}`: {reason}"

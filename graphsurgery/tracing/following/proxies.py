"""Proxies that know the meta value of their node, and say what the model decided by it."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, fx, nn

from graphsurgery.errors import TraceError
from graphsurgery.network.outputs.records import RecordTracer
from graphsurgery.tracing.following import numpy_calls

LITERALS = frozenset({bool, int, float, str, type(None)})
"""Types of arguments that stand in a graph as they are."""

DEVICE = torch.device("cpu")
"""Where the model is told to be: a trace runs on meta tensors, for which it might go another way."""

_OF_DEVICES = ("type", "index")
_KINDS = ("dim", "ndimension", "is_floating_point", "is_complex", "is_signed", "element_size", "is_contiguous")
"""Methods of tensors that are answered at once, as neither surgery nor another input of the kind changes the answer."""
_OF_TENSORS: Mapping[str, Any] = {
    **dict.fromkeys(("is_cuda", "is_meta", "is_mps", "is_xpu", "is_sparse", "is_quantized", "is_nested"), False),
    "is_cpu": True,
}
_DATA = "asks for the data of a tensor, so the graph would depend on the input"


class DecidingTracer(RecordTracer):
    """What a proxy needs of its tracer: it is told what the model was answered."""

    def decided(self, proxy: fx.Proxy, line: str | None = None) -> None:
        """The model goes the way that the value of this proxy says."""
        raise NotImplementedError

    def indexed(self, proxy: fx.Proxy, frame: FrameType) -> None:
        """A frame asks for a size as a Python integer: for Python, or for a function of torch that it calls."""
        raise NotImplementedError

    def settle(self, frame: FrameType) -> None:
        """A frame calls a function of torch, which has handed over."""
        raise NotImplementedError

    def converted(self, name: str, frame: FrameType) -> None:
        """A frame calls `int` or `float`, which can give nothing but a number of Python."""
        raise NotImplementedError

    def spelled(self, proxy: fx.Proxy) -> None:
        """The model writes a size into a text."""
        raise NotImplementedError


class ValueProxy(fx.Proxy):
    """A proxy that knows the meta value of its node."""

    tracer: DecidingTracer

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What `isinstance` sees: the type of a size, a shape or a dtype.

        Not that of a tensor, which torch's C code would take for one; `questions` answers for those.
        """
        value = value_of(self)
        return type(self) if isinstance(value, Tensor) else type(value)

    def __getattr__(self, name: str) -> Any:
        value = value_of(self)
        if isinstance(value, torch.device) and name in _OF_DEVICES:
            return getattr(DEVICE, name)
        if isinstance(value, Tensor):
            if name in _OF_TENSORS:
                return _OF_TENSORS[name]
            if name == "ndim":
                return value.ndim
            if name in _KINDS:
                return getattr(value, name)
            if name == "requires_grad":
                return self._needs_gradient()
        if not hasattr(type(value), name) and not hasattr(value, name):
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        return proxy_of_attribute(self, name)

    def _needs_gradient(self) -> bool:
        if self.node.op == "get_attr":
            return value_of(self).requires_grad
        raise TraceError("asks whether a gradient is wanted, which is another answer in training and in evaluation")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        raise TypeError(f"{type(value_of(self)).__name__!r} object is not callable")

    def __len__(self) -> int:
        value = value_of(self)
        length = length_of(self)
        if isinstance(length, fx.Proxy):
            self.tracer.converted("len", sys._getframe(1))
            self.tracer.decided(length)
        return len(value)

    def __iter__(self) -> Iterator[Any]:
        value = value_of(self)
        if isinstance(value, Mapping):
            return iter(value)
        if isinstance(value, Tensor) or hasattr(type(value), "__len__"):
            return iter([operator.getitem(self, i) for i in range(len(self))])
        raise TypeError(f"{type(value).__name__!r} object is not iterable")

    def __contains__(self, item: Any) -> bool:
        value = value_of(self)
        if isinstance(value, Tensor):
            raise TraceError("`in` depends on the values of a tensor")
        if isinstance(value, (tuple, list)):
            return any(item is own or bool(item == own) for own in self)
        return (value_of(item) if isinstance(item, fx.Proxy) else item) in value

    def __hash__(self) -> int:
        """Tensors are what they are; a size is no key, as one that is found for it would be right for it alone."""
        value = value_of(self)
        if isinstance(value, Tensor):
            return id(self)
        if _is_number(value):
            raise TypeError("unhashable: a size that follows the input cannot be looked up")
        return hash(value)

    def __index__(self) -> int:
        """A Python integer; torch's own functions ask for it, too, before they hand over to the trace."""
        value = self._number()
        self.tracer.indexed(self, sys._getframe(1))
        return operator.index(value)

    def __int__(self) -> int:
        self.tracer.converted("int", sys._getframe(1))
        return int(self._decided())

    def __float__(self) -> float:
        self.tracer.converted("float", sys._getframe(1))
        return float(self._decided())

    def __complex__(self) -> complex:
        return complex(self._decided())

    def __round__(self, digits: int | None = None) -> Any:
        self._number()
        more = () if digits is None else (digits,)
        return self.tracer.create_proxy("call_function", round, (self, *more), {})

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return numpy_calls.of_numbers(ufunc, method, inputs, options, held)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return numpy_calls.of_sequences(function, args, kwargs, held)

    def __trunc__(self) -> int:
        return int(self._decided())

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Any, Any]:
        return other // self, other % self

    def _number(self) -> Any:
        value = value_of(self)
        if isinstance(value, Tensor):
            raise TraceError("a number is read out of a tensor, so the graph would depend on the data")
        return value

    def _decided(self) -> Any:
        """The number that this stands for; the graph will hold it."""
        value = self._number()
        self.tracer.decided(self)
        return value

    @classmethod
    def __torch_function__(
        cls, orig_method: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> fx.Proxy:
        tracer = _tracer(args, kwargs)
        if tracer is not None:
            tracer.settle(sys._getframe(1))
        return super().__torch_function__(orig_method, types, args, kwargs)

    def __str__(self) -> str:
        return self.__format__("")

    def __format__(self, form: str) -> str:
        """Text about a value, most often the message of an assertion; what else it may be, the tracer remembers."""
        value = value_of(self)
        if isinstance(value, Tensor):
            return repr(self)
        self.tracer.spelled(self)
        return format(value, form)

    def __copy__(self) -> Any:
        """A tensor that shares its memory, and has no gradient."""
        return self.detach() if isinstance(value_of(self), Tensor) else self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.clone() if isinstance(value_of(self), Tensor) else self

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def item(self) -> NoReturn:
        raise TraceError(_DATA)

    def tolist(self) -> NoReturn:
        raise TraceError(_DATA)


class SequenceProxy(ValueProxy):
    """Stands for a tuple, a list or a shape; `case (a, b)` matches it."""


class MappingProxy(ValueProxy):
    """Stands for a dict; `case {"out": y}` matches it."""

    def keys(self) -> Any:
        return value_of(self).keys()

    def values(self) -> Any:
        return [operator.getitem(self, key) for key in value_of(self)]

    def items(self) -> Any:
        return [(key, operator.getitem(self, key)) for key in value_of(self)]


Sequence.register(SequenceProxy)
Mapping.register(MappingProxy)


class MethodProxy(ValueProxy):
    """A method of a value; a node only if it is used as a value rather than called."""

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
    """The meta tensor, the size or whatever else a proxy stands for."""
    return proxy.node.meta["value"]


def held(proxy: ValueProxy) -> Any:
    """The number that a proxy stands for, which the graph then holds."""
    return proxy._decided()


def proxy_of(node: fx.Node, tracer: DecidingTracer) -> ValueProxy:
    """The proxy for a node that has its value."""
    value = node.meta["value"]
    if isinstance(value, Tensor):
        return ValueProxy(node, tracer)
    if isinstance(value, (tuple, list)):
        return SequenceProxy(node, tracer)
    return MappingProxy(node, tracer) if isinstance(value, Mapping) else ValueProxy(node, tracer)


def proxy_of_attribute(root: ValueProxy, name: str) -> ValueProxy:
    """An attribute of what a proxy stands for: a node, or a method that becomes one when it is called."""
    if callable(getattr(type(value_of(root)), name, None)) or callable(getattr(value_of(root), name)):
        return MethodProxy(root, name)
    return cast(ValueProxy, root.tracer.create_proxy("call_function", getattr, (root, name), {}))


def type_of(candidate: Any) -> type:
    """As `type`, of what a proxy stands for."""
    return type(_plainly(candidate) if _is_proxy(candidate) else candidate)


def is_instance(candidate: Any, kinds: Any) -> bool:
    """As `isinstance`, of what a proxy stands for."""
    return isinstance(candidate, kinds) or (_is_proxy(candidate) and isinstance(_plainly(candidate), kinds))


def _plainly(proxy: ValueProxy) -> Any:
    """The value of a proxy; what is computed from a parameter alone is none, while shapes may be taken from it."""
    value = value_of(proxy)
    return value.detach() if isinstance(value, nn.Parameter) and proxy.node.op != "get_attr" else value


def _is_proxy(candidate: Any) -> bool:
    return issubclass(type(candidate), ValueProxy)


def converted(kind: type, *args: Any) -> Any:
    """As `int` and `float`, but of a size what is computed from it: a number that follows the input."""
    if len(args) == 1 and _is_proxy(args[0]) and _is_number(value_of(args[0])):
        return args[0].tracer.create_proxy("call_function", kind, args, {})
    return kind(*args)


def length_of(candidate: Any) -> Any:
    """As `len`, but of what a proxy stands for a number that follows the input, where it may be another one."""
    if not _is_proxy(candidate):
        return len(candidate)
    value = value_of(candidate)
    if isinstance(value, Tensor):
        if not value.dim():
            raise TypeError("len() of a 0-d tensor")
        return operator.getitem(candidate.shape, 0)
    if _length_may_change(candidate.node):
        return candidate.tracer.create_proxy("call_function", len, (candidate,), {})
    return len(value)


def is_callable(candidate: Any) -> bool:
    """As `callable`, of what a proxy stands for."""
    plain = not _is_proxy(candidate) or isinstance(candidate, MethodProxy)
    return callable(candidate if plain else value_of(candidate))


def _tracer(*arguments: Any) -> DecidingTracer | None:
    """The tracer of the first proxy among the arguments of a call."""
    for argument in arguments:
        if isinstance(argument, ValueProxy):
            return argument.tracer
        if type(argument) in (tuple, list, dict):
            inner = argument.values() if type(argument) is dict else argument
            if (found := _tracer(*inner)) is not None:
                return found
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


_BY_SIZE = frozenset({"unbind", "split", "unsafe_split", "chunk", "unsafe_chunk", "hsplit", "vsplit", "dsplit"})


def _length_may_change(node: fx.Node) -> bool:
    """Whether a sequence may be longer or shorter for another input: parts of a tensor, a list that a size multiplies.

    The rank of a shape, the fields of a result and what a module gives stay as many.
    """
    value = node.meta["value"]
    fields = isinstance(value, (torch.Size, Mapping, Tensor)) or hasattr(value, "n_fields")
    if fields or node.op in ("call_module", "placeholder"):
        return False
    if node.target is operator.getitem or node.target is getattr:
        source = node.args[0]
        return isinstance(source, fx.Node) and _length_may_change(source)
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if name not in _BY_SIZE:
        return name in ("mul", "add", "concat", "list", "tuple", "range")
    count = node.args[1] if len(node.args) > 1 else None
    if name in ("split", "unsafe_split"):
        count = count if count is not None else node.kwargs.get("split_size", node.kwargs.get("split_size_or_sections"))
        return not isinstance(count, (list, tuple))
    if name in ("chunk", "unsafe_chunk"):
        return len(value) != (count if count is not None else node.kwargs.get("chunks"))
    return name == "unbind"


def _in_place(name: str) -> Callable[[ValueProxy, Any], Any]:
    """`x += y`: tensors are written in place, as in the model; sizes are new numbers."""
    written, new = getattr(operator, f"i{name}"), getattr(operator, name)

    def method(self: ValueProxy, other: Any) -> Any:
        target = written if isinstance(value_of(self), Tensor) else new
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(ValueProxy, f"__i{_name}__", _in_place(_name))

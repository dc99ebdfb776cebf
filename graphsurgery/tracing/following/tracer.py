"""The tracer: fx's, with proxies that carry the meta value of their node (`proxies`).

Questions of the model are answered from the value, while sizes stay symbolic, so that the graph takes other batch
sizes. What was decided by a size is held.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import linecache
import operator
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as nn_module
from torch.nn.utils import rnn
from torch.utils.checkpoint import CheckpointFunction

from graphsurgery import errors
from graphsurgery.errors import TraceError
from graphsurgery.network.custom_gradients import KeptFunction, call_inline, has_own_gradient
from graphsurgery.network.layers import TrainingFlag
from graphsurgery.network.operators import operators, part_at
from graphsurgery.network.paths import modules_of, named_tensors
from graphsurgery.tracing.following.decisions import asking_line
from graphsurgery.tracing.following.effects import cut_gradients, own_constants
from graphsurgery.tracing.following.importing import left_to_import
from graphsurgery.tracing.following.made_layers import without_fresh_weights
from graphsurgery.tracing.following.numpy_calls import python_number
from graphsurgery.tracing.following.patches import Recorder, as_written, asked_for, no_hidden_draws
from graphsurgery.tracing.following.proxies import LITERALS, ValueProxy, value_of
from graphsurgery.tracing.following.questions import truthful
from graphsurgery.tracing.following.recording import RecordingTracer
from graphsurgery.tracing.leaves import has_hooks, is_leaf
from graphsurgery.tracing.modes import FLAG

_DATA_DEPENDENT = ("raises unimplemented by default", "data-dependent")
"""In what torch says where meta tensors cannot tell a shape, as of `nonzero`."""
_PACKING = (rnn.pack_padded_sequence, rnn.pad_packed_sequence)
"""What torch writes in Python, and asks for data: operators too."""
_GLOBAL_HOOKS = tuple(name for name in vars(nn_module) if name.startswith("_global_") and name.endswith("_hooks"))


@contextlib.contextmanager
def _patched(recorder: Recorder, symbolic: Collection[tuple[str, str]]) -> Iterator[None]:
    with recorder.patched(), truthful(symbolic):
        yield


class Mode:
    """Stands for `self.training` of a module that is traced through.

    Handed on as an argument it becomes a node that gives the module's mode; asked for its truth it answers with the
    mode of the trace, and the tracer remembers that the graph depends on it.
    """

    def __init__(self, tracer: ValueTracer, path: str) -> None:
        self.tracer = tracer
        self.path = path

    def __bool__(self) -> bool:
        self.tracer.branches.append(asking_line())
        return self.tracer.training


class UnfollowedError(TraceError):
    """A submodule whose forward cannot be followed.

    Attributes:
        path: of the innermost module that raised; empty for the network itself.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ValueTracer(RecordingTracer):
    """Records a forward while computing it on meta tensors.

    Args:
        examples: meta tensors, one for each input; None for an argument that stays None.
        training: the mode to trace in.
        strict: whether a size that the model writes into a text is a decision too; where it is only the message of an
            assertion, that would refuse other sizes for nothing.
        opaque: paths of submodules that are kept whole because their forward cannot be followed, with the reason.
        identities: paths of submodules without weights that are kept whole because they only act in training.
        symbolic: modules of Python, and `int` or `float`: where these follow sizes; see `questions.truthful`.
    """

    def __init__(
        self,
        examples: Sequence[Tensor | None],
        *,
        training: bool = False,
        strict: bool = False,
        opaque: Mapping[str, str] = MappingProxyType({}),
        identities: Iterable[str] = (),
        symbolic: Iterable[tuple[str, str]] = (),
    ) -> None:
        # Our own functions record themselves (`layers.one_node`).
        vision = sys.modules.get("torchvision.ops")
        # Functions of torchvision with rules of their own; where it is not imported, nobody calls them.
        whole = () if vision is None else _of_torchvision()
        wrapped = (*whole, *_PACKING)
        super().__init__(opaque=opaque, identities=identities, strict=strict, autowrap_functions=wrapped)
        self._autowrap_search += [rnn] if vision is None else [vision, rnn]
        self.examples = list(examples)
        self.training = training
        self.symbolic = frozenset(symbolic)
        self.branches: list[str] = []
        self.failed: str | None = None
        self._arguments: list[str] = []
        self._flags: dict[str, ValueProxy] = {}
        self._weights: dict[str, Any] = {}
        self._kinds: dict[type, bool] = {}
        self._installed: set[int] = set()
        self._functions = 0
        self._recorder = Recorder(self._recorded, self._custom, lambda: self.evaluating)
        self._precision = _autocast()

    def follow(self, root: nn.Module) -> fx.Graph:
        """Trace `root`; arguments without an example keep their defaults."""
        self._arguments = _arguments(root, len(self.examples))
        self.names = {id(tensor): name for name, tensor in named_tensors(root).items()}
        self.modules = modules_of(root)
        self._installed = {id(module) for module in self.modules.values()}
        parts = list({id(part): part for part in self.modules.values()}.values())
        kept = [(dict(vars(module)), dict(module._buffers)) for module in parts]
        followed = self._set_modes(root)
        try:
            with (
                torch.enable_grad(),
                no_hidden_draws(),
                left_to_import(lambda: _patched(self._recorder, self.symbolic)),
                as_written(),
                asked_for(parts, lambda tensor: self.getattr("", tensor, self._weights)),
            ):
                graph = self.trace(root)
                self.decide_indices(graph)
                for node in graph.nodes:
                    self.value_at(node)
                    if node.op == "call_function" and node.target in _PACKING:
                        # Code that names a wrapped function makes fx wrap it for good, and this name has dots.
                        node.meta.pop("is_wrapped", None)
        except Exception as error:
            raise UnfollowedError(_where(error, root), self.failed or "") from error
        finally:
            for module in followed:
                module.__dict__["training"] = False
            for module, (attributes, buffers) in zip(parts, kept, strict=True):
                _restore(vars(module), attributes)
                _restore(module._buffers, buffers)
        cut_gradients(graph)
        own_constants(graph, root)
        return graph

    def inputs(self) -> list[ValueProxy | None]:
        """An input for each example."""
        inputs: list[ValueProxy | None] = []
        for name, example in zip(self._arguments, self.examples, strict=False):
            if example is None:
                inputs.append(None)
                continue
            node = self.create_node("placeholder", name, (), {})
            node.meta["value"] = example
            inputs.append(self.proxy(node))
        return inputs

    def _set_modes(self, root: nn.Module, path: str = "") -> list[nn.Module]:
        """Let every module that is traced through answer for its mode; returns these."""
        root.__dict__["training"] = Mode(self, path)
        found = [root]
        for name, child in root._modules.items():
            below = f"{path}.{name}" if path else name
            if child is not None and not self.is_leaf_module(child, below):
                found += self._set_modes(child, below)
        return found

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
        if kind is torch.Generator:
            raise TraceError("draws from a generator of its own, which a graph does not have")
        if issubclass(kind, fx.Proxy):
            return a.node  # before fx asks whether it is a tensor, which it says it is
        if isinstance(a, np.ndarray):
            a = torch.from_numpy(a)
        return self._flag(a.path).node if kind is Mode else super().create_arg(python_number(a))

    def _flag(self, owner: str) -> ValueProxy:
        """The node that gives the mode of a module."""
        path = f"{owner}.{FLAG}" if owner else FLAG
        if path not in self._flags:
            module = self.root.get_submodule(owner)
            if not hasattr(module, FLAG):
                module.add_module(FLAG, TrainingFlag())
            self._flags[path] = self.create_proxy("call_module", path, (), {})
        return self._flags[path]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.evaluating or m is self.root:
            return forward(*args, **kwargs)
        if id(m) not in self._installed:
            _check_lasting(m, self.root)
            return without_fresh_weights(m).forward(*args, **kwargs)
        asked = len(self.branches)
        path = self.path_of_module(m)
        _check_precision(self._precision)
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

    def _recorded(self, function: Any, args: Any, kwargs: Any) -> Any:
        kind = "call_method" if isinstance(function, str) else "call_function"
        return self.create_proxy(kind, function, args, kwargs)

    def _custom(self, function: Any, args: Any, kwargs: Any) -> Any:
        """A function with a backward: followed if that is what autograd finds, else a module that is kept whole."""
        if function is CheckpointFunction:
            part, _, *given = args  # it runs a part of the model again in the backward
            return part(*given)
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
        self.modules[path] = self.root.get_submodule(path)
        self.kept_functions[path] = f"{function.__name__} has a gradient of its own"
        return self._leaf(path, args, kwargs)


@functools.cache
def _of_torchvision() -> tuple[Any, ...]:
    return tuple(part_at(path) for known in operators() for path in known.foreign_functions)


def _arguments(root: nn.Module, count: int) -> list[str]:
    """The names of the arguments that so many inputs are for.

    Raises:
        TraceError: the forward does not take them.
    """
    kind = type(root).__name__
    if any(nn_module.__dict__[name] for name in _GLOBAL_HOOKS):
        raise TraceError(f"{kind}: hooks are registered for every module, which a trace leaves out; remove them")
    parameters = inspect.signature(root.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return [*(p.name for p in positional), *(f"input_{i}" for i in range(count))]
    if len(positional) < count:
        raise TraceError(f"{kind}.forward takes {len(positional)} inputs, {count} given")
    for parameter in [*positional[count:], *(p for p in parameters if p.kind == p.KEYWORD_ONLY)]:
        if parameter.default is parameter.empty:
            raise TraceError(f"{kind}.forward needs an example for its argument {parameter.name}")
    return [parameter.name for parameter in positional]


def _check_precision(around: tuple[bool, ...]) -> None:
    """Refuse a part of the model that asks for another precision than what surrounds it."""
    if around != _autocast():
        raise TraceError("computes under torch.autocast, which a graph would leave out")


def _autocast() -> tuple[bool, ...]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _restore(values: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Take back the proxies that a forward has put into a module, such as a table for the size of the last input."""
    if len(values) == len(before) and all(map(operator.is_, values.values(), before.values())):
        return
    for name in [name for name, value in values.items() if isinstance(value, fx.Proxy)]:
        if name in before:
            values[name] = before[name]
        else:
            del values[name]


def _is_bare(module: nn.Module) -> bool:
    """Whether a module has no parameters and no buffers of its own."""
    return not any(t is not None for t in (*module._parameters.values(), *module._buffers.values()))


def _reason(error: Exception) -> str:
    """Why a forward could not be followed."""
    if any(words in str(error) for words in _DATA_DEPENDENT):
        return "what it gives has a size that depends on the values of a tensor"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _where(error: Exception, root: nn.Module) -> str:
    """The innermost line of the model's own code, and why it could not be followed."""
    own = [str(Path(torch.__file__).parent), str(Path(errors.__file__).parent), "<frozen", "<eval", "<string>"]
    own.append(str(Path(contextlib.__file__)))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(tuple(own))]
    reason = _reason(error)
    if not frames:
        return f"{type(root).__name__}: {reason}"
    frame = frames[-1]
    line = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
    return f"{frame.filename}:{frame.lineno} in {frame.name}: `{line}`: {reason}"


def _check_lasting(made: nn.Module, root: nn.Module) -> None:
    """Refuse a layer with weights that the first call of a model puts into it."""
    if any(True for _ in made.parameters()) and any(made is part for part in root.modules()):
        raise TraceError(f"{type(made).__name__} is made in the first call of the model; call it once, then trace it")

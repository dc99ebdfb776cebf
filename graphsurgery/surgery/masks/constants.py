"""Which numbers inside a network do not depend on its input, and what they are.

The network is run once, in evaluation mode, in float64 unless it casts its values itself. Beside every value goes a
tensor of the same shape that says where it may vary with the input. A weight of 0 cuts that dependence; an operator
that is not known here lets everything that it gives vary as soon as anything that it takes does. What is constant is so
at every resolution: where zero padding meets a number other than 0, the result counts as varying, however it looks at
this resolution.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from graphsurgery.axes.inference import RULES
from graphsurgery.axes.rules import contraction, movement, norms, pointwise, reductions, spatial
from graphsurgery.graph import ModelGraph
from graphsurgery.network.aliasing import acts_in_place
from graphsurgery.network.operators import Trait, is_a, key_of
from graphsurgery.network.outputs.strips import ConvolutionsInStrips
from graphsurgery.network.paths import map_values
from graphsurgery.network.values.dtypes import holds_numbers, in_double
from graphsurgery.network.values.evaluation import called
from graphsurgery.surgery.deviation import double

_RANDOM = ("rand", "dropout", "rrelu", "stochastic_depth", "bernoulli", "normal", "uniform", "multinomial", "empty")
_WITH_VECTORS = (pointwise.prelu, norms.batch_norm, norms.frozen_batch_norm)
_SUMS = ("mean", "sum", "amax")
# What may put zeros around its input, so that even what is constant depends on the resolution.
_BORDERED = (
    contraction.convolution, contraction.convolution_function, contraction.transposed_convolution,
    contraction.transposed_convolution_function, spatial.pool, movement.pad,
)  # fmt: skip


@dataclass(frozen=True)
class Constants:
    """What one evaluation has shown, by the names of nodes.

    Attributes:
        values: what each node gave, float64.
        varies: where that may depend on the input: booleans of the same shapes.
    """

    values: Mapping[str, Any]
    varies: Mapping[str, Any]


def constants(graph: ModelGraph, nodes: Collection[str] | None = None) -> Constants:
    """Which numbers of a network in evaluation mode do not depend on its input; it is not modified.

    Args:
        graph: the network.
        nodes: names of the nodes that are asked for, which saves the memory of the others; by default all.
    """
    try:
        following = _followed(double(graph), nodes)
    except RuntimeError:
        # A network that casts its values may run in its own precision only.
        following = _followed(replace(graph, module=copy.deepcopy(graph.module).cpu().eval()), nodes)
    values = {name: map_values(value, _precise) for name, value in following.values.items()}
    return Constants(values, following.varies)


def hides_border(module: nn.Module) -> bool:
    """Whether a layer puts zeros around what it is given, which its output does not show everywhere."""
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return True
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return module.padding_mode == "zeros" and _pads(module.padding) and any(k > 1 for k in module.kernel_size)
    return isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)) and _pads(module.padding)


def response(module: nn.Module, x: Tensor) -> Tensor:
    """What a layer with a weight gives of an input, without its bias."""
    bias = getattr(module, "bias", None)
    return functional_call(module, {} if bias is None else {"bias": torch.zeros_like(bias)}, (x,))


def _followed(graph: ModelGraph, nodes: Collection[str] | None) -> _Following:
    following = _Following(graph.module, nodes)
    with torch.no_grad(), ConvolutionsInStrips():
        following.run(*graph.example_inputs(2))
    return following


def _precise(tensor: Tensor) -> Tensor:
    return in_double(tensor)


def _pads(padding: Any) -> bool:
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, (tuple, list)) else bool(padding)


class _Following(fx.Interpreter):
    """Runs a network and follows what varies; what nobody asks for is forgotten after its last use."""

    def __init__(self, module: fx.GraphModule, nodes: Collection[str] | None) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.nodes = nodes
        self.values: dict[str, Any] = {}
        self.varies: dict[str, Any] = {}
        self.done: set[fx.Node] = set()
        self.changed: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        written = n.all_input_nodes[0] if acts_in_place(self.module, n) and n.all_input_nodes else None
        before = {} if written is None else self._beside(written)
        value = super().run_node(n)
        self.done.add(n)
        self.values[n.name] = value
        self.varies[n.name] = self._varying(n, value)
        if written is not None:
            self._write(n, written, before)
        for node in self.user_to_last_uses.get(n, []):
            if self.nodes is not None and node.name not in self.nodes:
                del self.values[node.name], self.varies[node.name]
        return value

    def _beside(self, written: fx.Node) -> dict[fx.Node, Any]:
        """Copies of all values that share memory with what is about to be written over."""
        places = {tensor.untyped_storage().data_ptr() for tensor in _tensors(self.values[written.name])}
        return {
            node: map_values(self.values[node.name], Tensor.clone)
            for node in self.done
            if any(t.untyped_storage().data_ptr() in places for t in _tensors(self.values.get(node.name)))
        }

    def _write(self, node: fx.Node, written: fx.Node, before: Mapping[fx.Node, Any]) -> None:
        """Note what was written in place: who reads it afterwards sees other numbers, also by another view of it."""
        value = self.values[written.name]
        varies = self._set(node) if node.target is operator.setitem else self.varies[node.name]
        known = isinstance(value, Tensor) and _same_shapes(varies, value)
        for other, old in before.items():
            if isinstance(old, Tensor):
                self.changed[other] = self.changed.get(other, False) | (self.values[other.name] != old)
            if other is written and known:
                self.varies[other.name] = varies | self.changed[other]
            elif other.users.keys() - self.done:
                self.varies[other.name] = map_values(old, _everywhere)
            else:  # all that read it have run
                self.values[other.name] = old

    def _set(self, node: fx.Node) -> Any:
        """Where a tensor varies when a part of it was set."""
        target, index, given = node.args
        assert isinstance(target, fx.Node)
        varies, part = self.varies[target.name].clone(), self._followed(given)
        if any(bool(chosen.any()) for chosen in _tensors(self._followed(index))):
            return _everywhere(varies)
        varies[fx.map_arg(index, lambda source: self.values[source.name])] = isinstance(part, Tensor) and part
        return varies

    def _varying(self, node: fx.Node, value: Any) -> Any:
        if node.op == "placeholder":
            return map_values(value, _everywhere)
        if node.op == "output":
            return self._followed(node.args[0])
        if node.op == "get_attr":
            return map_values(value, _nowhere)
        name = str(getattr(node.target, "__name__", node.target))
        if node.op != "call_module" and any(word in name for word in _RANDOM):
            return map_values(value, _everywhere)
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        rule = RULES.get(key_of(node.target if module is None else type(module)))
        args, kwargs = self._followed(node.args), self._followed(node.kwargs)
        if rule not in _BORDERED and not any(bool(t.any()) for t in _tensors((args, kwargs))):
            return map_values(value, _nowhere)
        try:
            found = self._known(node, module, rule, value)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            found = None
        return found if _same_shapes(found, value) else map_values(value, _everywhere)

    def _followed(self, argument: Any) -> Any:
        """An argument, with what varies in place of tensors."""
        return fx.map_arg(argument, lambda node: self.varies[node.name])

    def _known(self, node: fx.Node, module: nn.Module | None, rule: Any, value: Any) -> Any:
        """Where the result of a known operator varies; None for others."""
        if rule in _WITH_VECTORS or is_a(self.module, node, Trait.ELEMENTWISE, Trait.BROADCAST):
            found = _nowhere(value)
            for part in _tensors((self._followed(node.args), self._followed(node.kwargs))):
                found = found | part
            # A norm without statistics of its own takes them from its input.
            return None if rule is norms.batch_norm and module.running_mean is None else found  # type: ignore[union-attr]
        if rule is movement.pad:
            pads = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
            return self._moved(node, module, bordered=any(pads[:-2]) if isinstance(pads, (tuple, list)) else True)
        if is_a(self.module, node, Trait.MOVES):
            return self._moved(node, module)
        if is_a(self.module, node, Trait.POSITIONS):
            return self._pooled(node, module, value)
        if rule is reductions.reduce and str(getattr(node.target, "__name__", node.target)) in _SUMS:
            return self._moved(node, module)
        if rule in (contraction.linear, contraction.convolution, contraction.transposed_convolution):
            assert module is not None
            return self._layer(node, module)
        if rule in (contraction.linear_function, contraction.matmul):
            return self._product(node)
        return None

    def _moved(self, node: fx.Node, module: nn.Module | None, *, bordered: bool = False) -> Any:
        """What moves numbers, or sums them, moves and sums where they vary; indices stay what they are.

        What puts something around them (`bordered`) does so with numbers other than 0 as if they varied.
        """

        def number(value: Tensor, varies: Tensor) -> Tensor:
            if holds_numbers(value):
                moved = varies | (value != 0) if bordered else varies
                return moved.to(torch.complex128 if value.is_complex() else torch.float64)
            if bool(varies.any()):
                raise ValueError("an index that depends on the input")
            return value

        def stand_in(source: fx.Node) -> Any:
            return map_values_together(self.values[source.name], self.varies[source.name], number)

        args, kwargs = fx.map_arg(node.args, stand_in), fx.map_arg(node.kwargs, stand_in)
        return map_values(called(node, module, args, kwargs), lambda tensor: tensor != 0)

    def _pooled(self, node: fx.Node, module: nn.Module | None, value: Any) -> Any:
        """A window varies where anything in it does."""
        name = str(getattr(node.target, "__name__", node.target)) if module is None else type(module).__name__
        mode = str(getattr(module, "mode", "")) + str(node.kwargs.get("mode", "")) + str(node.args[3:4])
        if not isinstance(value, Tensor) or "bicubic" in mode:
            return None
        averages = module is None and name.startswith("avg_pool")
        pads = name.startswith(("ZeroPad", "ConstantPad")) or (module is not None and hides_border(module))
        return self._moved(node, module, bordered=averages or pads)

    def _layer(self, node: fx.Node, module: nn.Module) -> Tensor | None:
        """An output varies where an input does that it reads by a weight other than 0."""
        source, weight = node.args[0], module.weight
        assert isinstance(source, fx.Node)
        assert isinstance(weight, Tensor)
        reads = {"weight": (weight != 0).to(weight)}
        if isinstance(module.bias, Tensor):
            reads["bias"] = torch.zeros_like(module.bias)
        varies = self.varies[source.name]
        if not hides_border(module):
            return functional_call(module, reads, (varies.to(weight),)) > 0.5
        rank = weight.dim() - 2
        if varies.dim() != rank + 2:
            return None
        # A small map is all border, and then some weights read nothing but zeros: whole channels on a larger one.
        varying = (varies | (self.values[source.name] != 0)).flatten(2).any(2)
        sides = [2 * (k - 1) * d + 3 for k, d in zip(weight.shape[2:], module.dilation, strict=True)]  # type: ignore[arg-type]
        larger = varying.reshape(*varying.shape, *[1] * rank).expand(*varying.shape, *sides)
        found = (functional_call(module, reads, (larger.to(weight),)) > 0.5).flatten(2).any(2)
        return found.reshape(*found.shape, *[1] * rank).expand_as(self.values[node.name])

    def _product(self, node: fx.Node) -> Tensor | None:
        """A product of two values, either of which may vary."""
        if len(node.args) < 2:
            return None
        left, right = node.args[:2]
        assert isinstance(left, fx.Node)
        assert isinstance(right, fx.Node)
        varies = [self.varies[side.name] for side in (left, right)]
        reads = [(self.values[side.name] != 0) | own for side, own in zip((left, right), varies, strict=True)]
        times: Any = torch.matmul if node.op == "call_method" else node.target
        found = times(varies[0].double(), reads[1].double()) + times(reads[0].double(), varies[1].double()) > 0.5
        bias = node.kwargs.get("bias", node.args[2] if len(node.args) > 2 else None)
        return found | self.varies[bias.name] if isinstance(bias, fx.Node) else found


def map_values_together(value: Any, other: Any, function: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """Apply `function` to the tensors of two nested values of one structure; what is no tensor is the first's."""
    if isinstance(value, Tensor):
        return function(value, other)
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return tuple(map_values_together(a, b, function) for a, b in zip(value, other, strict=True))
    if isinstance(value, Mapping):
        return {key: map_values_together(part, other[key], function) for key, part in value.items()}
    return value


def _everywhere(tensor: Tensor) -> Tensor:
    return torch.ones(tensor.shape, dtype=torch.bool)


def _nowhere(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=torch.bool)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_values(value, found.append)
    return found


def _same_shapes(found: Any, value: Any) -> bool:
    """Whether a result has a boolean tensor for each tensor of a value."""
    left, right = _tensors(found), _tensors(value)
    return found is not None and [t.shape for t in left] == [t.shape for t in right]

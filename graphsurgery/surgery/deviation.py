"""What networks give, how far two outputs lie apart, and the float64 copies on which that is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree

from graphsurgery.errors import CheckFailedError, SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.copying import deep_copy, whole_copy
from graphsurgery.network.outputs.naming import run, tensors_of
from graphsurgery.network.outputs.strips import ConvolutionsInStrips
from graphsurgery.network.paths import place_of
from graphsurgery.network.values.dtypes import (
    holds_numbers,
    in_double,
    literals_in_double,
    made_in_double,
    method_in_double,
)

_MAKERS = frozenset(
    (torch.full, torch.zeros, torch.ones, torch.empty, torch.eye, torch.arange, torch.linspace, torch.tensor)
)


def deviation(found: Any, expected: Any) -> float:
    """`max |found - expected| / max |expected|` over all tensors of two outputs, computed in float64.

    Args:
        found: a tensor, or tensors in tuples, lists and dicts.
        expected: the same structure and shapes; its largest value is the scale.

    Returns:
        0 for equal outputs; infinity when a value is not finite, or when only the expected output is all zeros.

    Raises:
        SurgeryError: the outputs differ in structure or shape.
    """
    left, right = tensors_of(found), tensors_of(expected)
    if [t.shape for t in left] != [t.shape for t in right]:
        raise SurgeryError(
            f"outputs have shapes {shapes_text(left)} and {shapes_text(right)}; only equal shapes can be compared"
        )
    difference = max(
        (_largest(a.detach().double().cpu() - b.detach().double().cpu()) for a, b in zip(left, right, strict=True)),
        default=0.0,
    )
    scale = max((_largest(b.detach().double()) for b in right), default=0.0)
    if not (math.isfinite(difference) and math.isfinite(scale)):
        return math.inf
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 else math.inf


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; 0 of no elements, infinity where a value is not a number."""
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    return math.inf if math.isnan(largest) else largest


def shapes_text(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The shapes of tensors, as errors show them."""
    return [list(tensor.shape) for tensor in tensors]


def beginning_of_nan(graph: ModelGraph, inputs: Sequence[Tensor]) -> str:
    """Where what a network gives stops to be numbers, such as `NaN from conv2 on, whose weight holds NaN`.

    Args:
        graph: a network on the CPU; it is run in the mode and precision that it has.
        inputs: each `[batch, ...]`.

    Returns:
        The first node that gives NaN, else the first that gives an infinity; empty where all outputs are finite.
    """
    watching = _Watching(graph.module)
    with torch.no_grad():
        outputs = tensors_of(watching.run(*inputs))
    kinds = {kind for output in outputs for kind in _not_finite(output)}
    for kind in ("NaN", "infinity"):
        if kind in kinds:
            node = watching.first[kind]
            held = {name: found for name, tensor in _held(graph, node) if (found := _not_finite(tensor))}
            why = next((f", whose {name} holds {' and '.join(sorted(found))}" for name, found in held.items()), "")
            return f"{kind} from {place_of(node)} on{why}"
    return ""


def _held(graph: ModelGraph, node: fx.Node) -> list[tuple[str, Tensor]]:
    """The parameters and buffers that a node reads, by name."""
    named = {name: tensor for name, tensor in graph.tensors().items() if holds_numbers(tensor)}
    if node.op == "call_module":
        return [(name, tensor) for name, tensor in named.items() if name.startswith(f"{node.target}.")]
    targets = {str(other.target) for other in (node, *node.all_input_nodes) if other.op == "get_attr"}
    return [(name, tensor) for name, tensor in named.items() if name in targets]


def _not_finite(value: Any) -> set[str]:
    """Which of NaN and infinity are in the tensors of a value."""
    found = set()
    for tensor in _pytree.tree_leaves(value):
        if isinstance(tensor, Tensor) and holds_numbers(tensor) and tensor.numel():
            found |= {"NaN"} if bool(tensor.isnan().any()) else set()
            found |= {"infinity"} if bool(tensor.isinf().any()) else set()
    return found


class _Watching(fx.Interpreter):
    """Notes the first node that gives NaN, and the first that gives an infinity."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.first: dict[str, fx.Node] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for kind in _not_finite(value):
            self.first.setdefault(kind, n)
        return value


def double(graph: ModelGraph) -> ModelGraph:
    """A float64 copy in evaluation mode on the CPU, to measure contracts on."""
    module = whole_copy(graph.module).cpu().double().eval()
    for node in module.graph.nodes:
        node.args, node.kwargs = literals_in_double(node.args), literals_in_double(node.kwargs)
        if node.op == "call_method":
            node.target = method_in_double(str(node.target))
        if _makes_numbers(node):
            node.update_kwarg("dtype", torch.float64)
        # Types are inferred anew, from values of the new dtype.
        node.meta.pop("value", None)
    module.recompile()
    inputs = tuple(replace(s, dtype=torch.float64) if s.dtype.is_floating_point else s for s in graph.inputs)
    return replace(graph, module=module, inputs=inputs)


def _makes_numbers(node: fx.Node) -> bool:
    """Whether a call makes floating numbers of sizes alone, in the default dtype."""
    return node.op == "call_function" and node.target in _MAKERS and _is_floating(node) and "dtype" not in node.kwargs


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("value")
    return isinstance(value, Tensor) and value.is_floating_point()


class InDouble(fx.Interpreter):
    """Runs a network in float64, in evaluation mode on the CPU, with a float64 copy of one layer at a time.

    A floating dtype that the network names, or makes numbers in, is float64 too.
    """

    def __init__(self, graph: ModelGraph) -> None:
        super().__init__(graph.module)

    def __call__(self, *inputs: Tensor) -> Any:
        """The outputs of the network; floating inputs may be of any precision."""
        with made_in_double(), ConvolutionsInStrips():
            return self.run(*(_double(x) for x in inputs))

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_function(target, literals_in_double(args), literals_in_double(kwargs))

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_method(method_in_double(target), literals_in_double(args), literals_in_double(kwargs))

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = deep_copy(self.fetch_attr(str(target))).cpu().double().eval()
        return layer(*args, **kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = super().get_attr(target, args, kwargs)
        return _double(value.detach()) if isinstance(value, Tensor) else value


def _double(tensor: Tensor) -> Tensor:
    return in_double(tensor.cpu())


def mean_of(outputs: Sequence[Tensor]) -> Tensor:
    """The mean of what several networks give for one output; indices and flags have one in float64."""
    numbers = torch.stack(list(outputs))
    return (numbers if numbers.is_floating_point() or numbers.is_complex() else numbers.double()).mean(0)


class UnlikeError(Exception):
    """Two sides of a contract cannot even be compared: it fails."""


def changed_by(before: ModelGraph, after: ModelGraph, seed: int = 0) -> float:
    """How far the outputs of two networks lie apart in float64, in evaluation, on random inputs; relative.

    Raises:
        CheckFailedError: the outputs of the first are not numbers, so that nothing can be compared.
    """
    x = before.example_inputs(4, seed=seed)
    found = apart(run(InDouble(after), x, seed), run(InDouble(before), x, seed))
    if math.isinf(found) and (beginning := beginning_of_nan(double(before), [_doubled(each) for each in x])):
        raise CheckFailedError(f"the network itself gives {beginning}, so nothing can be compared; nothing was written")
    return found


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return in_double(x.cpu())


def apart(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, over: Callable[[list[float]], float] = max
) -> float:
    """The relative deviation of the outputs, each in proportion to its own largest value: the largest, or another.

    Raises:
        UnlikeError: they are not the same outputs, or not of the same shapes.
    """
    missing = [name for name in expected if name not in found]
    added = [name for name in found if name not in expected]
    if missing or added:
        differences = [f"{word} {', '.join(names)}" for word, names in (("lacks", missing), ("adds", added)) if names]
        raise UnlikeError(
            f"it gives {len(found)} outputs where {len(expected)} are expected: {' and '.join(differences)}"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise UnlikeError(f"output {name} has the shape {list(found[name].shape)}, expected {list(tensor.shape)}")
    return over([deviation(found[name], tensor) for name, tensor in expected.items()] or [0.0])

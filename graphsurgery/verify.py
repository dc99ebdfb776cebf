"""How far two networks' outputs lie apart, and the float64 copies on which that is measured."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph


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
            f"outputs have shapes {_shapes(left)} and {_shapes(right)}; only equal shapes can be compared"
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


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of a nested output, in order."""
    return [torch.as_tensor(leaf) for leaf in _pytree.tree_leaves(output)]


def _largest(tensor: Tensor) -> float:
    """The largest magnitude; 0 of no elements, infinity where a value is not a number."""
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    return math.inf if math.isnan(largest) else largest


def _shapes(tensors: list[Tensor]) -> list[list[int]]:
    return [list(tensor.shape) for tensor in tensors]


def double(graph: ModelGraph) -> ModelGraph:
    """A float64 copy in evaluation mode on the CPU, to measure contracts on."""
    module = copy.deepcopy(graph.module).cpu().double().eval()
    for node in module.graph.nodes:
        # Types are inferred anew, from values of the new dtype.
        node.meta.pop("value", None)
    inputs = tuple(replace(s, dtype=torch.float64) if s.dtype.is_floating_point else s for s in graph.inputs)
    return replace(graph, module=module, inputs=inputs)


class InDouble(fx.Interpreter):
    """Runs a network in float64, in evaluation mode on the CPU, with a float64 copy of one layer at a time."""

    def __init__(self, graph: ModelGraph) -> None:
        super().__init__(graph.module)

    def __call__(self, *inputs: Tensor) -> Any:
        """The outputs of the network; floating inputs may be of any precision."""
        return self.run(*(_double(x) for x in inputs))

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = copy.deepcopy(self.fetch_attr(str(target))).cpu().double().eval()
        return layer(*args, **kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = super().get_attr(target, args, kwargs)
        return _double(value.detach()) if isinstance(value, Tensor) else value


def _double(tensor: Tensor) -> Tensor:
    return tensor.cpu().double() if tensor.is_floating_point() else tensor.cpu()

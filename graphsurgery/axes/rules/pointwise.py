"""Operators that act on each element alone, with broadcasting, and marks that do nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.types import Resize, TensorType, tensor_types
from graphsurgery.network.layers import Boundary, either, scale_axis
from graphsurgery.network.operators import Trait, spellings
from graphsurgery.network.training_only import InTraining


@rule(InTraining)
def in_training(infer: Inference, x: TensorType) -> TensorType:
    """The identity where it counts; its constants stay."""
    for name in infer.submodule._buffers:
        constant = infer.parameter(name)
        assert constant is not None
        infer.fix(*constant.axes)
    return TensorType(x.axes)


@rule(*spellings(Trait.ELEMENTWISE))
def unary(infer: Inference, input: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """The output has the type of the input."""
    return TensorType(input.axes)


@rule(torch.polygamma, torch.special.polygamma, "polygamma", torch.mvlgamma, torch.special.multigammaln, "mvlgamma")
def of_an_order(infer: Inference, *operands: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """A function of each number and of a whole one."""
    return TensorType(tensor_types(operands)[0].axes)


@rule(nn.PReLU)
def prelu(infer: Inference, input: TensorType) -> TensorType:
    """One slope for all channels, or one for each channel of axis 1."""
    weight = infer.parameter("weight")
    assert weight is not None
    if ax.size_of(weight[0]) > 1:
        infer.unify(weight[0], input[1])
        infer.attribute("num_parameters", weight[0])
    else:
        infer.fix(weight[0])
    return TensorType(input.axes)


@rule(F.prelu, torch.prelu, "prelu")
def prelu_function(infer: Inference, input: TensorType, weight: TensorType) -> TensorType:
    """The functional form."""
    if ax.size_of(weight[0]) > 1:
        infer.unify(weight[0], input[1])
    else:
        infer.fix(weight[0])
    return TensorType(input.axes)


@rule(torch.frexp, "frexp")
def mantissa_and_exponent(infer: Inference, input: TensorType) -> tuple[TensorType, TensorType]:  # noqa: ARG001
    """Two numbers for each."""
    return TensorType(input.axes), TensorType(input.axes)


@rule(torch.bucketize, torch.isin)
def compared_with_a_set(
    infer: Inference,
    input: Any,
    others: Any,
    *options: Any,  # noqa: ARG001
    **named: Any,  # noqa: ARG001
) -> TensorType:
    """Each number is compared with all of a set."""
    infer.freeze("numbers that others are compared with", others)
    return TensorType(input.axes if isinstance(input, TensorType) else ())


@rule(torch.searchsorted)
def place_among(
    infer: Inference,
    sorted_sequence: TensorType,
    input: Any,
    *options: Any,  # noqa: ARG001
    **named: Any,  # noqa: ARG001
) -> TensorType:
    """Each number is compared with all of a row, or of one sequence."""
    infer.freeze_axis("numbers that others are compared with", sorted_sequence[-1])
    if not isinstance(input, TensorType):
        return TensorType(())
    if len(sorted_sequence) > 1:
        for own, axis in zip(sorted_sequence.axes[:-1], input.axes[:-1], strict=True):
            infer.unify(own, axis)
    return TensorType(input.axes)


@rule("copy_")
def copy(infer: Inference, input: TensorType, src: TensorType, *others: Any, **options: Any) -> TensorType:  # noqa: ARG001
    """One tensor is written over another."""
    return broadcast(infer, src, input)


@rule(nn.GLU, F.glu)
def gated_linear_unit(infer: Inference, input: TensorType, dim: int | None = None) -> TensorType:
    """One half of an axis, times the sigmoid of the other."""
    axis = dim if dim is not None else infer.submodule.dim if infer.node.op == "call_module" else -1
    assert isinstance(axis, int)
    half = ax.size_of(input[axis]) // 2
    first, second = ax.take(input[axis], 0, half), ax.take(input[axis], half, 2 * half)
    infer.unify(first, second)
    return input.replace(axis, first)


@rule(*spellings(Trait.BROADCAST))
def pointwise(infer: Inference, *operands: Any, **options: Any) -> TensorType:
    """Axes are aligned from the right; those of size 1 stretch, the others are unified."""
    return broadcast(infer, *tensor_types(operands), *tensor_types(options))


def broadcast(infer: Inference, *operands: TensorType) -> TensorType:
    """The type of operands broadcast together."""
    if len(operands) == 2 and len(operands[0]) == len(operands[1]):
        return TensorType([meet(infer, a, b) for a, b in zip(operands[0].axes, operands[1].axes, strict=True)])
    rank = max((len(typed) for typed in operands), default=0)
    axes: list[ax.Axis | None] = [None] * rank
    for typed in operands:
        for index, axis in enumerate(typed.axes, rank - len(typed)):
            known = axes[index]
            axes[index] = axis if known is None else meet(infer, known, axis)
    return TensorType([ax.UNIT if axis is None else axis for axis in axes])


def meet(infer: Inference, a: ax.Axis, b: ax.Axis) -> ax.Axis:
    if a is b:
        return a
    if ax.size_of(a) == ax.size_of(b):
        infer.unify(a, b)
        return b
    single, other = (a, b) if ax.size_of(a) == 1 else (b, a)
    if ax.size_of(single) != 1:
        infer.freeze_axis(f"{infer.operator()} pairs {ax.size_of(a)} indices with {ax.size_of(b)}", a, b)
    infer.fix(single)
    return other


@rule(either)
def one_of_two(infer: Inference, training: bool, in_training: Any, in_evaluation: Any) -> Any:  # noqa: ARG001
    """Both values have one type; where they are not alike (auxiliary outputs), they are what the network gives."""
    alike = isinstance(in_training, TensorType) and isinstance(in_evaluation, TensorType)
    if alike and in_training.shape == in_evaluation.shape:
        return broadcast(infer, in_training, in_evaluation)
    if any(user.op != "output" for user in infer.node.users):
        infer.freeze("is one thing in training and another in evaluation", in_training, in_evaluation)
    elif not infer.open_outputs:
        infer.fix(*(axis for typed in tensor_types((in_training, in_evaluation)) for axis in typed.axes))
    return in_evaluation


def tie_parts(infer: Inference, axis: ax.Axis, parts: Any) -> None:
    """Say that an axis is scaled by these masks, one (mask, outer, inner) for each term."""
    terms = []
    for mask, outer, inner in parts:
        around = [ax.free(n) if n > 1 else ax.UNIT for n in (outer, inner)]
        terms.append(ax.free(outer * inner) if mask is None else ax.product([around[0], mask[1], around[1]]))
    infer.unify(axis, ax.concat(terms))


def parts_again(written: Any, parts: Any, new: Resize) -> tuple[tuple[Any, int, int], ...]:
    """The parts of an axis that is scaled at its new size, from those in the graph and their types."""
    layout = []
    for (mask, outer, inner), typed in zip(written, parts, strict=True):
        if mask is None:
            layout.append((None, 1, outer * inner))
            continue
        size = new.size(ax.product([ax.fixed(outer), typed[0][1], ax.fixed(inner)]))
        layout.append((mask, outer, size // (outer * new.size(typed[0][1]))))
    return tuple(layout)


@rule(scale_axis)
def scale(infer: Inference, x: TensorType, dim: int, parts: Any, **place: Any) -> TensorType:  # noqa: ARG001
    """A mask is laid out as the axis is: one (mask, outer, inner) for each term."""
    tie_parts(infer, x[dim], parts)

    def relayout(node: fx.Node, new: Resize) -> None:
        node.update_arg(2, parts_again(node.args[2], parts, new))

    infer.on_rebuild(relayout)
    return TensorType(x.axes)


@rule(Boundary)
def boundary(infer: Inference, x: Any) -> Any:  # noqa: ARG001
    """A tensor, or a dict of tensors, keeps its type."""
    if isinstance(x, Mapping):
        return {key: TensorType(typed.axes) for key, typed in x.items()}
    return TensorType(x.axes)


@rule(torch.broadcast_tensors)
def broadcast_tensors(infer: Inference, *tensors: Any) -> tuple[TensorType, ...]:
    """Tensors laid over each other, given one by one or as one sequence."""
    every = tensor_types(tensors)
    return (broadcast(infer, *every),) * len(every)

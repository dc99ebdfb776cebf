"""Operators that sum over an axis of their input: linear, convolutions, matrix products, embeddings, einsum."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from graphsurgery.axes import algebra as ax
from graphsurgery.axes.algebra import Axis, Clash
from graphsurgery.axes.inference import Inference, rule
from graphsurgery.axes.rules.pointwise import broadcast, meet
from graphsurgery.axes.types import TensorType
from graphsurgery.network.layers import grouped_product
from graphsurgery.network.operators import spelled


def outputs_like(infer: Inference, *free: tuple[int, ax.Axis]) -> TensorType:
    """The type of the node's one output: fixed, but for the given axes."""
    axes = [ax.fixed(n) for n in infer.value.shape]
    for index, axis in free:
        axes[index] = axis
    return TensorType(axes)


@rule(nn.Linear)
def linear(infer: Inference, input: TensorType) -> TensorType:
    """`x [..., in]`, `weight [out, in]`, `bias [out]`."""
    weight = infer.parameter("weight")
    assert weight is not None
    infer.attribute("in_features", weight[1])
    infer.attribute("out_features", weight[0])
    return linear_function(infer, input, weight, infer.parameter("bias"))


@rule(F.linear)
def linear_function(
    infer: Inference, input: TensorType, weight: TensorType, bias: TensorType | None = None
) -> TensorType:
    """The functional form, whose weight may itself be computed."""
    infer.unify(input[-1], weight[-1])
    infer.reads(0, len(input) - 1, weight[-1], weight, len(weight) - 1)
    if len(weight) == 1:
        return TensorType(input.axes[:-1])
    if bias is not None:
        infer.unify(bias[0], weight[0])
    infer.writes(weight[0])
    infer.multiplies(*input.axes[:-1], *weight.axes)
    return input.replace(-1, weight[0])


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(infer: Inference, input: TensorType) -> TensorType:
    """`x [batch, g·i, ...]`, `weight [g·o, i, ...]`: depthwise is `i = 1`, an ordinary convolution is `g = 1`."""
    weight, module = infer.parameter("weight"), infer.submodule
    assert weight is not None
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    groups = groups_axis(module.groups)
    result = convolve(infer, input, weight, infer.parameter("bias"), groups, module.stride, module.padding)
    infer.attribute("in_channels", input[len(input) - len(weight) + 1])
    infer.attribute("out_channels", weight[0])
    infer.attribute("groups", groups)
    return result


@rule(F.conv1d, F.conv2d, F.conv3d)
def convolution_function(
    infer: Inference,
    input: TensorType,
    weight: TensorType,
    bias: TensorType | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,  # noqa: ARG001
    groups: int = 1,
) -> TensorType:
    """The functional form, whose weight may itself be computed and whose groups are a literal."""
    axis = groups_axis(groups)
    result = convolve(infer, input, weight, bias, axis, stride, padding)
    if groups > 1:
        infer.on_rebuild(lambda node, new: resize_argument(node, 6, "groups", new.size(axis)), sizes=(6, "groups"))
    return result


def groups_axis(count: int) -> ax.Axis:
    """The axis of a convolution's groups; one group is no axis at all."""
    return ax.free(count) if count > 1 else ax.UNIT


def set_argument(node: torch.fx.Node, position: int, name: str, value: Any) -> None:
    """Set an argument of a call, wherever it was given."""
    if len(node.args) > position:
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def resize_argument(node: torch.fx.Node, position: int, name: str, size: int) -> None:
    """Set a size in a call; one that is computed stays in proportion, so that other batches keep working."""
    old = node.args[position] if len(node.args) > position else node.kwargs[name]
    set_argument(node, position, name, in_proportion(node, old, size))


def in_proportion(node: torch.fx.Node, old: Any, size: int) -> Any:
    """A size for a node: computed in front of it from a computed one, times what makes it this one in the trace."""
    while (base := _scaled_from(old)) is not None:
        old = base
    value: Any = old.meta["value"] if isinstance(old, torch.fx.Node) else 0
    if not value or value == size:
        return old if value else size
    with node.graph.inserting_before(node):
        product = node.graph.call_function(operator.mul, (old, size))
        scaled = node.graph.call_function(operator.floordiv, (product, value))
    product.meta["value"], scaled.meta["value"] = value * size, size
    return scaled


def _scaled_from(size: Any) -> torch.fx.Node | None:
    """What a size is in proportion to, as an earlier edit has left it: `base * 6 // 4`."""
    if not isinstance(size, torch.fx.Node) or size.target is not operator.floordiv or not isinstance(size.args[1], int):
        return None
    product = size.args[0]
    if (
        not isinstance(product, torch.fx.Node)
        or product.target is not operator.mul
        or not isinstance(product.args[1], int)
    ):
        return None
    return product.args[0] if isinstance(product.args[0], torch.fx.Node) else None


def convolve(
    infer: Inference,
    input: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    groups: ax.Axis,
    stride: Any,
    padding: Any,
) -> TensorType:
    channel = len(input) - len(weight) + 1
    positions = _positions(infer, input, weight, channel, stride, padding)
    per_group = ax.size_of(weight[0]) // ax.size_of(groups)
    infer.unify(input[channel], ax.product([groups, weight[1]]))
    if ax.size_of(groups) > 1:
        infer.unify(weight[0], ax.product([groups, ax.free(per_group)]))
    if bias is not None:
        infer.unify(bias[0], weight[0])
    infer.reads(0, channel, weight[1], weight, 1)
    infer.writes(weight[0])
    infer.multiplies(*input.axes[:channel], *weight.axes[:2], *positions)
    return TensorType([*input.axes[:channel], weight[0], *positions])


def _positions(
    infer: Inference, input: TensorType, weight: TensorType, channel: int, stride: Any, padding: Any
) -> list[ax.Axis]:
    """The axes behind the channels: new positions, but a kernel of one that takes every index leaves an axis alone."""
    infer.fix(*weight.axes[2:])
    kernel = weight.shape[2:]
    settings = zip(kernel, _each(stride, len(kernel)), _each(padding, len(kernel)), strict=True)
    found = []
    for index, setting in enumerate(settings, channel + 1):
        if setting in ((1, 1, 0), (1, 1, "same"), (1, 1, "valid")):
            found.append(input[index])
        else:
            infer.freeze_axis("an axis that a convolution slides over", input[index])
            found.append(ax.fixed(infer.value.shape[index]))
    return found


def _each(setting: Any, rank: int) -> list[Any]:
    """A setting for every position axis, of which one may stand for all."""
    if isinstance(setting, (int, str)):
        return [setting] * rank
    return [*setting] * (rank // len(setting))


@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(infer: Inference, input: TensorType, output_size: Any = None) -> TensorType:  # noqa: ARG001
    """`x [batch, g·i, ...]`, `weight [g·i, o, ...]`, output channels `g·o`."""
    weight, module = infer.parameter("weight"), infer.submodule
    assert weight is not None
    assert isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    groups = groups_axis(module.groups)
    output = _transposed(infer, input, weight, infer.parameter("bias"), groups, module.stride, module.padding)
    channel = len(input) - len(weight) + 1
    infer.attribute("in_channels", weight[0])
    infer.attribute("out_channels", output[channel])
    infer.attribute("groups", groups)
    return output


@rule(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
def transposed_convolution_function(
    infer: Inference,
    input: TensorType,
    weight: TensorType,
    bias: TensorType | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,  # noqa: ARG001
    groups: int = 1,
    dilation: Any = 1,  # noqa: ARG001
) -> TensorType:
    """The functional form, whose weight may itself be computed and whose groups are a literal."""
    axis = groups_axis(groups)
    result = _transposed(infer, input, weight, bias, axis, stride, padding)
    if groups > 1:
        infer.on_rebuild(lambda node, new: resize_argument(node, 6, "groups", new.size(axis)), sizes=(6, "groups"))
    return result


def _transposed(
    infer: Inference,
    input: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    groups: ax.Axis,
    stride: Any,
    padding: Any,
) -> TensorType:
    channel = len(input) - len(weight) + 1
    positions = _positions(infer, input, weight, channel, stride, padding)
    infer.unify(input[channel], weight[0])
    read = weight[0]
    if ax.size_of(groups) > 1:
        read = ax.free(ax.size_of(weight[0]) // ax.size_of(groups))
        infer.unify(weight[0], ax.product([groups, read]))
    output = ax.product([groups, weight[1]])
    if bias is not None:
        infer.unify(bias[0], output)
    infer.reads(0, channel, read, weight, 0)
    infer.writes(output)
    infer.multiplies(*input.axes[:channel], *weight.axes[:2], *positions)
    return TensorType([*input.axes[:channel], output, *positions])


@rule(*spelled("matmul"))
def matmul(infer: Inference, input: TensorType, other: TensorType) -> TensorType:
    """`[..., n, k] @ [..., k, m]`: k is summed over, the leading axes broadcast."""
    return _product(infer, input, other, 0, 1)


def _product(infer: Inference, left: TensorType, right: TensorType, first: int, second: int) -> TensorType:
    """The product of the node's arguments number `first` and `second`."""
    inner = right[-2] if len(right) > 1 else right[0]
    infer.unify(left[-1], inner)
    left_axis, right_axis = len(left) - 1, max(len(right) - 2, 0)
    if left.parameter and not right.parameter:
        infer.reads(second, right_axis, inner, left, left_axis)
    else:
        infer.reads(first, left_axis, inner, right if right.parameter else None, right_axis)
    for side in (left, right):
        if side.parameter is not None:
            infer.writes(side[-1] if side is right else side[0])
    if len(left) == 1 or len(right) == 1:
        result = TensorType([*left.axes[:-1], *(right.axes[:-2] + right.axes[-1:] if len(right) > 1 else ())])
    else:
        lead = broadcast(infer, TensorType(left.axes[:-2]), TensorType(right.axes[:-2]))
        result = TensorType([*lead.axes, left[-2], right[-1]])
    infer.multiplies(*result.axes, inner)
    return result


@rule(grouped_product)
def product_of_groups(infer: Inference, x: TensorType, weight: TensorType, offsets: TensorType) -> TensorType:  # noqa: ARG001
    """`x [rows, in]`, `weight [groups, in, out]`: which rows are of which group is data, so the groups are fixed."""
    infer.freeze_axis("an axis of groups of rows, which data tells", weight[0], x[0])
    infer.unify(x[1], weight[1])
    infer.reads(0, 1, weight[1], weight, 1)
    if weight.parameter is not None:
        infer.writes(weight[2])
    infer.multiplies(x[0], weight[1], weight[2])
    return TensorType([x[0], weight[2]])


@rule(torch.addmm, "addmm", torch.baddbmm, "baddbmm", torch.addmv, "addmv")
def added_product(
    infer: Inference,
    input: TensorType,
    left: TensorType,
    right: TensorType,
    **factors: Any,  # noqa: ARG001
) -> TensorType:
    """`beta · input + alpha · left @ right`."""
    return broadcast(infer, input, _product(infer, left, right, 1, 2))


@rule(torch.outer, "outer", torch.ger, "ger")
def outer(infer: Inference, input: TensorType, vec2: TensorType) -> TensorType:  # noqa: ARG001
    """Every element of one vector times every element of another."""
    return TensorType([input[0], vec2[0]])


@rule(torch.inner, "inner", torch.dot, "dot", torch.vdot, "vdot")
def inner(infer: Inference, input: TensorType, other: TensorType) -> TensorType:
    """`[..., k]` and `[..., k]`: k is summed over; the other axes of both stand one after the other."""
    infer.unify(input[-1], other[-1])
    weight = other if other.parameter else None
    infer.reads(0, len(input) - 1, other[-1], weight, len(other) - 1)
    infer.multiplies(*input.axes, *other.axes[:-1])
    return TensorType([*input.axes[:-1], *other.axes[:-1]])


@rule(torch.linalg.vecdot)
def vector_product(infer: Inference, x: TensorType, y: TensorType, dim: int = -1) -> TensorType:
    """Two tensors that are laid over each other, multiplied and summed along one axis."""
    whole = broadcast(infer, x, y)
    infer.mixes(whole[dim], "inner product", dim % len(whole) - len(whole))
    return TensorType([axis for index, axis in enumerate(whole.axes) if index != dim % len(whole)])


@rule(torch.kron, "kron")
def kronecker(infer: Inference, input: TensorType, other: TensorType) -> TensorType:  # noqa: ARG001
    """Every element of one tensor times all of another: the product of their axes."""
    rank = max(len(input), len(other))
    pairs = zip(*([ax.UNIT] * (rank - len(t)) + list(t.axes) for t in (input, other)), strict=True)
    return TensorType([ax.product(pair) for pair in pairs])


@rule(nn.Bilinear)
def bilinear(infer: Inference, input1: TensorType, input2: TensorType) -> TensorType:
    """`x [..., a]`, `y [..., b]`, `weight [out, a, b]`."""
    weight = infer.parameter("weight")
    assert weight is not None
    infer.attribute("in1_features", input1[-1])
    infer.attribute("in2_features", input2[-1])
    infer.attribute("out_features", weight[0])
    return bilinear_function(infer, input1, input2, weight, infer.parameter("bias"))


@rule(F.bilinear)
def bilinear_function(
    infer: Inference, input1: TensorType, input2: TensorType, weight: TensorType, bias: TensorType | None = None
) -> TensorType:
    """The functional form; each input is summed over with an axis of the weight."""
    for number, typed in enumerate((input1, input2)):
        infer.unify(typed[-1], weight[number + 1])
        infer.reads(number, len(typed) - 1, typed[-1], weight, number + 1)
    for a, b in zip(input1.axes[:-1], input2.axes[:-1], strict=True):
        infer.unify(a, b)
    if bias is not None:
        infer.unify(bias[0], weight[0])
    infer.writes(weight[0])
    infer.multiplies(*input1.axes[:-1], *weight.axes)
    return input1.replace(-1, weight[0])


@rule(torch.einsum)
def einsum(infer: Inference, equation: str, *operands: Any) -> TensorType:
    """One axis for each letter; a letter that the output lacks is summed over, with a weight if it stands in one."""
    if not isinstance(equation, str):
        raise Clash("its equation is no text")
    given, nodes = _operands(infer, operands)
    names, output = _letters(equation, [len(typed) for typed in given])
    axes: dict[str, Axis] = {}
    for letters, typed in zip(names, given, strict=True):
        for letter, axis in zip(letters, typed.axes, strict=True):
            axes[letter] = meet(infer, axes[letter], axis) if letter in axes else axis
    for letter in axes:
        if letter not in output:
            _sum_over(infer, letter, axes[letter], names, given, nodes)
    for index, (letters, typed) in enumerate(zip(names, given, strict=True)):
        others = {letter for other in (*names[:index], *names[index + 1 :]) for letter in other}
        if typed.parameter is not None:
            for letter in letters:
                if letter in output and letter not in others:
                    infer.writes(axes[letter])
    if len(given) == 2:
        infer.multiplies(*axes.values())
    return TensorType([axes[letter] for letter in output])


def _operands(infer: Inference, operands: tuple[Any, ...]) -> tuple[tuple[TensorType, ...], tuple[Any, ...]]:
    """The operands' types and nodes, given one by one or in a list."""
    nodes: Any = infer.node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands, nodes = tuple(operands[0]), nodes[0]
    if not all(isinstance(typed, TensorType) for typed in operands):
        raise Clash("an operand is no tensor")
    return operands, tuple(nodes)


def _letters(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """The name of every axis of every operand and of the output; the axes of an ellipsis are named by their number."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    names = []
    longest = 0
    for term, rank in zip(terms, ranks, strict=True):
        before, dots, after = term.partition("...")
        covered = rank - len(before) - len(after)
        longest = max(longest, covered)
        names.append([*before, *(f".{i}" for i in range(covered if dots else 0, 0, -1)), *after])
    ellipsis = [f".{i}" for i in range(longest if "..." in left else 0, 0, -1)]
    if not arrow:
        counts = "".join(terms).replace(".", "")
        return names, [*ellipsis, *sorted(letter for letter in set(counts) if counts.count(letter) == 1)]
    before, dots, after = right.partition("...")
    return names, [*before, *(ellipsis if dots else []), *after]


def _sum_over(
    infer: Inference,
    letter: str,
    axis: Axis,
    names: list[list[str]],
    given: tuple[TensorType, ...],
    nodes: tuple[fx.Node, ...],
) -> None:
    """A letter of one operand is summed away; a letter of several is contracted, by a weight if one is a parameter."""
    holders = [index for index, letters in enumerate(names) if letter in letters]
    stretched = any(ax.size_of(given[i][names[i].index(letter)]) != ax.size_of(axis) for i in holders)
    if len(holders) == 1 or stretched:
        infer.mixes(axis, "sum")
        return
    weight = next((i for i in reversed(holders) if given[i].parameter and names[i].count(letter) == 1), None)
    read = next(i for i in (*(h for h in holders if not given[h].parameter), *holders) if i != weight)
    dim = names[read].index(letter)
    if weight is None or names[read].count(letter) > 1:
        infer.reads(nodes[read], dim, axis, None, 0)
    else:
        infer.reads(nodes[read], dim, axis, given[weight], names[weight].index(letter))

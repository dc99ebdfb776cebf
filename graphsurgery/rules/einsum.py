"""Sums of products by an equation of letters."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphsurgery import axes as ax
from graphsurgery.axes import Axis, Clash
from graphsurgery.facts import TensorType
from graphsurgery.inference import Inference, rule
from graphsurgery.rules.pointwise import meet


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
    # A value that stands there twice would be scaled twice.
    if weight is None or names[read].count(letter) > 1 or nodes.count(nodes[read]) > 1:
        infer.reads(nodes[read], dim, axis, None, 0)
    else:
        infer.reads(nodes[read], dim, axis, given[weight], names[weight].index(letter))

"""Whole parts of quotients: `int(n / (h * w / s / s))` becomes a division of integers, `n * s * s // (h * w)`.

Windowed transformers find their batch so. As a float it would be a number that no exporter follows.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from torch import fx

_WHOLE = (int, math.floor, math.trunc)
_FINEST = 2**10
"""The largest denominator of a factor that is written down, such as 0.5."""

Factors = list[Any]


def whole_quotient(node: fx.Node) -> None:
    """Where a node gives the whole part of a quotient of positive sizes, let it divide integers, in place.

    The two are one as long as the floats are exact to less than the distance to the next integer, which products of
    sizes are.
    """
    if node.target not in _WHOLE or len(node.args) != 1 or node.kwargs:
        return
    ratio = _ratio(node.args[0])
    if ratio is None or not ratio[1]:
        return
    with node.graph.inserting_before(node):
        over, under = (_product(factors) for factors in ratio)
    if _value(over) // _value(under) != node.meta["value"]:
        return
    node.target, node.args = operator.floordiv, (over, under)


def _ratio(number: Any) -> tuple[Factors, Factors] | None:
    """The integers, as nodes or written down, whose products are numerator and denominator of a number."""
    value = _value(number)
    if type(value) is int:
        return ([number], []) if value > 0 else None
    if not isinstance(number, fx.Node):
        over, under = number.as_integer_ratio() if type(number) is float and 0 < number < math.inf else (0, 1)
        return ([over], [under]) if over and under <= _FINEST else None
    parts = [_ratio(operand) for operand in number.args] if number.target in (operator.truediv, operator.mul) else []
    if len(parts) != 2 or parts[0] is None or parts[1] is None:
        return None
    (a, b), (c, d) = parts[0], parts[1]
    return (a + d, b + c) if number.target is operator.truediv else (a + c, b + d)


def _product(factors: Factors) -> Any:
    """The product of some integers; the graph says where it inserts."""
    product: Any = math.prod(factor for factor in factors if not isinstance(factor, fx.Node))
    for factor in (factor for factor in factors if isinstance(factor, fx.Node)):
        product = factor if product == 1 and not isinstance(product, fx.Node) else _times(factor.graph, product, factor)
    return product


def _times(graph: fx.Graph, a: Any, b: Any) -> fx.Node:
    multiply: Callable[..., Any] = operator.mul
    node = graph.call_function(multiply, (a, b))
    node.meta["value"] = _value(a) * _value(b)
    return node


def _value(number: Any) -> Any:
    return number.meta["value"] if isinstance(number, fx.Node) else number

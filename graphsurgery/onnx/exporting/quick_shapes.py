"""What common operators give on the tensors without data that torch's exporter follows, without reference code.

For sizes that are symbols torch finds out the shape of an operator by running its decomposition, in Python, each part
of which is followed in turn: a batch norm is ten operators. It does so in each of the three runs of an export, a fifth
of the time. Of these operators the shape is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., Any]

_ELEMENTWISE = ("relu", "hardswish", "hardsigmoid", "gelu", "leaky_relu", "mish")


def with_quick_shapes(usual: Callable[[], Mapping[Any, Rule]]) -> Callable[[], Mapping[Any, Rule]]:
    """Torch's own table of such operators, which has sums and products, and those that are here."""

    @cache
    def table() -> Mapping[Any, Rule]:
        return {**_rules(), **usual()}

    return table


def _rules() -> dict[Any, Rule]:
    """The rules by operator; none where a version of torch works in another way."""
    try:
        from torch._decomp import decomposition_table, meta_table  # noqa: F401
        from torch._prims_common import is_contiguous_for_memory_format_or_false  # noqa: F401
    except ImportError:
        return {}
    aten = torch.ops.aten
    rules: dict[Any, Callable[..., Any]] = {getattr(aten, name).default: _elementwise for name in _ELEMENTWISE}
    rules[aten._native_batch_norm_legit_no_training.default] = _batch_norm
    rules[aten.native_layer_norm.default] = _layer_norm
    rules[aten.addmm.default] = _addmm
    return {operator: _or_decomposed(operator, rule) for operator, rule in rules.items() if _is_decomposed(operator)}


def _is_decomposed(operator: Any) -> bool:
    """Whether torch asks the decomposition of an operator for its shape."""
    from torch._decomp import decomposition_table, meta_table

    return operator in decomposition_table and operator not in meta_table


def _or_decomposed(operator: Any, rule: Rule) -> Rule:
    """What a rule gives; where it gives None, what the decomposition does."""
    from torch._decomp import decomposition_table

    def shaped(mode: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            found = rule(mode, *args, **kwargs)
        except (TypeError, ValueError, AttributeError, IndexError):  # not a call of the common form
            found = None
        if found is not None:
            return found
        with mode:
            return decomposition_table[operator](*args, **kwargs)

    return shaped


def _elementwise(mode: Any, x: Any, *_options: Any, **_named: Any) -> Any:
    return _fake(mode, x, x.shape) if _is_plain(x) else None


def _batch_norm(mode: Any, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *_options: Any) -> Any:
    """The output and, on the CPU, two empty vectors in the place of statistics."""
    vectors = [vector for vector in (weight, bias, mean, variance) if vector is not None]
    if not _is_plain(x) or any(vector.dtype != x.dtype for vector in vectors):
        return None
    return _fake(mode, x, x.shape), _fake(mode, x, (0,)), _fake(mode, x, (0,))


def _layer_norm(mode: Any, x: Any, normalized_shape: Any, weight: Any, bias: Any, _eps: Any) -> Any:
    """The output, the means and the inverse deviations."""
    vectors = [vector for vector in (weight, bias) if vector is not None]
    if not _is_plain(x) or any(vector.dtype != x.dtype for vector in vectors):
        return None
    count = len(normalized_shape)
    sizes = (*x.shape[:-count], *(1,) * count)
    return _fake(mode, x, x.shape), _fake(mode, x, sizes), _fake(mode, x, sizes)


def _addmm(mode: Any, bias: Any, a: Any, b: Any, **_factors: Any) -> Any:
    plain = _is_plain(a) and a.dim() == b.dim() == 2 and a.dtype == b.dtype == bias.dtype and bias.dim() == 1
    return _fake(mode, a, (a.shape[0], b.shape[1])) if plain else None


def _is_plain(x: Tensor) -> bool:
    """Whether it holds float32 numbers on the CPU that certainly lie in order."""
    from torch._prims_common import is_contiguous_for_memory_format_or_false

    right = x.dtype == torch.float32 and x.device.type == "cpu" and x.dim() > 0
    return right and is_contiguous_for_memory_format_or_false(x, memory_format=torch.contiguous_format)


def _fake(mode: Any, like: Tensor, sizes: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor

    return FakeTensor(mode, torch.empty(sizes, dtype=like.dtype, device="meta"), device=like.device)

"""What common operators give on meta tensors, found out without running them.

torch computes such a shape in ten to a thousand microseconds, most of them in reference code written in Python. Each
function here takes the arguments of its operator and gives a meta tensor of the shape, dtype and strides that torch
would give, or None where that is not certain: then torch is to be asked, and reports what is wrong with the arguments.
A result may be one of the operands, as a value is never written.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import (
    Tensor,
    empty,  # a name of our own, as tracing replaces `torch.empty`
    nn,
)

from graphsurgery.network.gated_layers import GatedGRU, GatedLSTM, GatedRNN
from graphsurgery.network.operators import Trait, is_in_place, key_of, modules, operators
from graphsurgery.network.values.recurrent_shapes import recurrent

Shape = Callable[..., Any]

_META = torch.device("meta")


def result_of(op: str, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a call gives; for `call_module` the target is the module. None where torch has to be asked."""
    if op == "call_module":
        found = MODULES.get(key_of(type(target)))
        args = (target, *args)
    else:
        found = (METHODS if op == "call_method" else FUNCTIONS).get(key_of(target))
    if found is None:
        return None
    try:
        return found(*args, **kwargs)
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError):
        return None  # not a call of the common form


def _new(like: Tensor, shape: Sequence[int]) -> Tensor | None:
    return None if 0 in shape else empty(shape, dtype=like.dtype, device=_META)


def _is_plain(x: Any, rank: int | None = None) -> bool:
    """Whether x is a contiguous meta tensor of floats, with this many axes."""
    right = isinstance(x, Tensor) and x.is_meta and x.is_floating_point() and x.is_contiguous()
    return right and (rank is None or x.dim() == rank)


def is_dense(x: Tensor) -> bool:
    """Whether a permutation of the axes makes x contiguous."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _sizes(value: Any, count: int) -> Sequence[int]:
    """An option that is one number for all spatial axes, or a number for each."""
    if isinstance(value, int):
        return (value,) * count
    if len(value) != count:
        raise ValueError(f"{len(value)} numbers for {count} axes")
    return value


# Elements ---------------------------------------------------------------------------------------------------------


def _unary(x: Tensor, *options: Any, **named: Any) -> Tensor | None:  # noqa: ARG001
    known = x.is_meta and x.is_floating_point() and "out" not in named and "memory_format" not in named
    return x if known and is_dense(x) else None


def _unary_module(module: nn.Module, x: Tensor) -> Tensor | None:  # noqa: ARG001
    return _unary(x)


def _binary(a: Any, b: Any) -> Tensor | None:
    """Sums, differences, products and quotients of floats, with broadcasting."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        tensor, number = (a, b) if isinstance(a, Tensor) else (b, a)
        return _unary(tensor) if type(number) in (int, float) else None
    if a.dtype != b.dtype or not (a.is_meta and b.is_meta and a.is_floating_point()):
        return None
    if a.shape == b.shape:
        return a if is_dense(a) else None
    if not (a.is_contiguous() and b.is_contiguous()):
        return None
    shape = _broadcast(a.shape, b.shape)
    return None if shape is None else _new(a, shape)


def _in_place(a: Tensor, b: Any) -> Tensor | None:
    result = _binary(a, b) if isinstance(a, Tensor) else None
    return a if result is not None and result.shape == a.shape else None


def _broadcast(a: Sequence[int], b: Sequence[int]) -> Sequence[int] | None:
    rank = max(len(a), len(b))
    pairs = list(zip((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b), strict=True))
    fits = all(m == n or m == 1 or n == 1 for m, n in pairs)
    return [n if m == 1 else m for m, n in pairs] if fits else None


# Sums over channels -----------------------------------------------------------------------------------------------


def _convolution_module(module: Any, x: Tensor) -> Tensor | None:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    parameters = module._parameters
    options = (module.stride, module.padding, module.dilation, module.groups)
    return _convolution(x, parameters["weight"], parameters["bias"], *options)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    rank = weight.dim()
    fits = _is_plain(x, rank) and weight.dtype == x.dtype and x.shape[1] == weight.shape[1] * groups
    if not fits or weight.shape[0] % groups or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    options = (_sizes(option, rank - 2) for option in (stride, padding, dilation))
    spatial = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], *options, strict=True)
    ]
    return _new(x, (x.shape[0], weight.shape[0], *spatial)) if min(spatial, default=1) > 0 else None


def _linear_module(module: Any, x: Tensor) -> Tensor | None:
    return _linear(x, module._parameters["weight"], module._parameters["bias"])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    fits = x.is_meta and weight.dim() == 2 and x.dtype == weight.dtype and x.shape[-1] == weight.shape[1]
    if not fits or x.dim() == 1 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    return _new(x, (*x.shape[:-1], weight.shape[0]))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    scale: float | None = None,  # noqa: ARG001
) -> Tensor | None:
    alike = query.dtype == key.dtype == value.dtype and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    fits = query.shape[-1] == key.shape[-1] and key.shape[-2] == value.shape[-2]
    meta = query.is_meta and key.is_meta and value.is_meta and query.is_floating_point()
    if not (alike and fits and meta) or query.dim() < 3:
        return None
    if attn_mask is not None:
        scores = [*query.shape[:-1], key.shape[-2]]
        if is_causal or attn_mask.dtype != query.dtype or _broadcast(attn_mask.shape, scores) != scores:
            return None
    return _new(query, (*query.shape[:-1], value.shape[-1]))


# Positions --------------------------------------------------------------------------------------------------------


def _pool_module(module: Any, x: Tensor) -> Tensor | None:
    if getattr(module, "return_indices", False):
        return None
    dilation = getattr(module, "dilation", 1)
    return _pool(x, module.kernel_size, module.stride, module.padding, dilation, module.ceil_mode)


def _max_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    return None if return_indices else _pool(x, kernel_size, stride, padding, dilation, ceil_mode)


def _average_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,  # noqa: ARG001
) -> Tensor | None:
    return _pool(x, kernel_size, stride, padding, 1, ceil_mode)


def _pool(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Tensor | None:
    """Pooling of `[batch, channel, height, width]`."""
    if not _is_plain(x, 4):
        return None
    stride = kernel if stride is None or stride == [] else stride
    spatial = []
    for n, *option in zip(x.shape[2:], *(_sizes(o, 2) for o in (kernel, stride, padding, dilation)), strict=True):
        k, s, p, d = option
        reach = n + 2 * p - d * (k - 1) - 1
        size = -(-reach // s) + 1 if ceil_mode else reach // s + 1
        if ceil_mode and (size - 1) * s >= n + p:
            size -= 1  # the last window would begin in the padding
        if 2 * p > k or size < 1:
            return None
        spatial.append(size)
    return _new(x, (*x.shape[:2], *spatial))


def _adaptive_pool_module(module: Any, x: Tensor) -> Tensor | None:
    return _adaptive_pool(x, module.output_size)


def _adaptive_pool(x: Tensor, output_size: Any) -> Tensor | None:
    if not _is_plain(x, 4):
        return None
    asked = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    height, width = (n if size is None else size for size, n in zip(asked, x.shape[2:], strict=True))
    return _new(x, (*x.shape[:2], height, width))


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor | None:
    if not _is_plain(x) or dim is None or isinstance(dim, bool):
        return None
    dims = [operator.index(d) for d in ((dim,) if isinstance(dim, int) else dim)]
    rank = x.dim()
    reduced = {d % rank for d in dims if -rank <= d < rank}
    if len(reduced) != len(dims) or not reduced:
        return None
    sizes = [1 if i in reduced else n for i, n in enumerate(x.shape)]
    return _new(x, sizes if keepdim else [n for i, n in enumerate(sizes) if i not in reduced])


# Norms and movement -----------------------------------------------------------------------------------------------


def _batch_norm_module(module: Any, x: Tensor) -> Tensor | None:
    return _unary(x) if x.shape[1] == module.num_features else None


def _layer_norm_module(module: Any, x: Tensor) -> Tensor | None:
    return _layer_norm(x, module.normalized_shape)


def _layer_norm(x: Tensor, normalized_shape: Any, *vectors: Any, **options: Any) -> Tensor | None:  # noqa: ARG001
    normalized = tuple(normalized_shape)
    if not x.is_meta or not x.is_floating_point() or not normalized or tuple(x.shape[-len(normalized) :]) != normalized:
        return None
    return x if x.is_contiguous() else _new(x, x.shape)


def _group_norm_module(module: Any, x: Tensor) -> Tensor | None:
    return x if _is_plain(x) and x.dim() > 1 and x.shape[1] == module.num_channels else None


def _concatenation(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    rank = first.dim()
    if not all(_is_plain(t, rank) and t.dtype == first.dtype for t in tensors) or not -rank <= dim < rank:
        return None
    dim %= rank
    shapes = [list(t.shape) for t in tensors]
    total = sum(shape[dim] for shape in shapes)
    for shape in shapes:
        shape[dim] = total
    return _new(first, shapes[0]) if all(shape == shapes[0] for shape in shapes) else None


def _roll(x: Tensor, shifts: Any, dims: Any = ()) -> Tensor | None:
    shifts, dims = ((v,) if isinstance(v, int) else tuple(v) for v in (shifts, dims))
    in_range = len(shifts) == len(dims) and all(-x.dim() <= d < x.dim() for d in dims)
    return x if _is_plain(x) and in_range and all(isinstance(shift, int) for shift in shifts) else None


MODULES: Mapping[Any, Shape] = {
    **dict.fromkeys(modules(Trait.ELEMENTWISE), _unary_module),
    **{path: _unary_module for known in operators(Trait.ELEMENTWISE) for path in known.foreign_modules},
    **dict.fromkeys(modules(Trait.PER_CHANNEL), _batch_norm_module),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution_module),
    nn.Linear: _linear_module,
    nn.MaxPool2d: _pool_module,
    nn.AvgPool2d: _pool_module,
    nn.AdaptiveAvgPool2d: _adaptive_pool_module,
    nn.LayerNorm: _layer_norm_module,
    nn.GroupNorm: _group_norm_module,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN, GatedLSTM, GatedGRU, GatedRNN), recurrent),
}

_ON_EACH = Trait.ELEMENTWISE | Trait.FLOAT
_ON_PAIRS = Trait.BROADCAST | Trait.FLOAT

FUNCTIONS: Mapping[Any, Shape] = {
    **{f: _unary for known in operators(_ON_EACH) for f in (*known.functions, *known.foreign_functions)},
    **{f: _in_place if is_in_place(f) else _binary for known in operators(_ON_PAIRS) for f in known.functions},
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    F.linear: _linear,
    F.scaled_dot_product_attention: _attention,
    F.max_pool2d: _max_pool,
    F.avg_pool2d: _average_pool,
    F.adaptive_avg_pool2d: _adaptive_pool,
    torch.mean: _mean,
    F.layer_norm: _layer_norm,
    torch.cat: _concatenation,
    torch.roll: _roll,
}

METHODS: Mapping[Any, Shape] = {
    **{m: _unary for known in operators(_ON_EACH) for m in known.methods},
    **{m: _in_place if is_in_place(m) else _binary for known in operators(_ON_PAIRS) for m in known.methods},
    "mean": _mean,
}

"""What common operators give on meta tensors, found out without running them.

torch computes such a shape in ten to a thousand microseconds, most of them in reference code written in Python. Each
function here takes the arguments of its operator and gives a meta tensor of the shape, dtype and strides that torch
would give, or None where that is not certain: then torch is to be asked, and reports what is wrong with the arguments.
A result may be one of the operands, as a value is never written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graphsurgery.network.gated_layers import GatedGRU, GatedLSTM, GatedRNN
from graphsurgery.network.layers import grouped_product
from graphsurgery.network.operators import Trait, is_in_place, key_of, modules, operators, spelled
from graphsurgery.network.values import spatial
from graphsurgery.network.values.recurrent_shapes import recurrent
from graphsurgery.network.values.spatial import is_plain, new

Shape = Callable[..., Any]


def result_of(op: str, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, strict: bool = False) -> Any:
    """What a call gives; for `call_module` the target is the module. None where torch has to be asked.

    A strict answer looks at all that is given, as torch does: where torch would refuse the call, it is None.
    """
    if op == "call_module":
        found = MODULES.get(key_of(type(target)))
        args = (target, *args)
    else:
        found = (METHODS if op == "call_method" else FUNCTIONS).get(key_of(target))
    if found is None or (strict and not _sees_all(found, args, kwargs)):
        return None
    try:
        return found(*args, **kwargs)
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RuntimeError):
        return None  # not a call of the common form


def _sees_all(formula: Shape, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a formula looks at all that it is given."""
    if formula is _unary_module:
        return type(args[0]) in _WITHOUT_SETTINGS
    if formula is _unary:
        return len(args) == 1 and not kwargs
    return formula in _STRICT


class ByFormula(TorchFunctionMode):
    """Inside the block, what is called on meta tensors gives what the formulas say, and runs where there is none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_method = getattr(func, "__qualname__", "").startswith(("TensorBase.", "Tensor."))
        called = ("call_method", func.__name__) if is_method else ("call_function", func)
        known = result_of(*called, args, kwargs)
        return func(*args, **kwargs) if known is None else known


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


# Elements ---------------------------------------------------------------------------------------------------------


def _unary(x: Tensor, *options: Any, **named: Any) -> Tensor | None:  # noqa: ARG001
    known = x.is_meta and x.is_floating_point() and "out" not in named and "memory_format" not in named
    return x if known and is_dense(x) else None


def _unary_module(module: nn.Module, x: Tensor) -> Tensor | None:  # noqa: ARG001
    return _unary(x)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor | None:
    return _unary(x) if approximate in ("none", "tanh") else None


def _gelu_module(module: Any, x: Tensor) -> Tensor | None:
    return _gelu(x, approximate=module.approximate)


def _binary(a: Any, b: Any) -> Tensor | None:
    """Sums, differences, products and quotients of floats, with broadcasting."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        tensor, number = (a, b) if isinstance(a, Tensor) else (b, a)
        return _unary(tensor) if type(number) in (int, float) else None
    if a.dtype != b.dtype or not (a.is_meta and b.is_meta and a.is_floating_point()):
        return None
    if a.shape == b.shape:
        return a if is_dense(a) else None
    shape = _broadcast(a.shape, b.shape)
    if shape is None:
        return None
    if a.is_contiguous() and b.is_contiguous():
        return new(a.dtype, shape)
    a, b = (x[(None,) * (len(shape) - x.dim())] for x in (a, b))
    lead = a if list(a.shape) == shape else b
    order = sorted(range(len(shape)), key=lambda axis: -lead.stride(axis))
    if not (a.permute(order).is_contiguous() and b.permute(order).is_contiguous()):
        return None
    laid_out = new(a.dtype, [shape[axis] for axis in order])
    return None if laid_out is None else laid_out.permute([order.index(axis) for axis in range(len(shape))])


def _in_place(a: Tensor, b: Any) -> Tensor | None:
    result = _binary(a, b) if isinstance(a, Tensor) else None
    return a if result is not None and result.shape == a.shape else None


def _filled(*_: Any, tensor: Tensor, **options: Any) -> Tensor | None:  # noqa: ARG001
    return tensor if tensor.is_meta else None


def _comparison(a: Any, b: Any) -> Tensor | None:
    """Flags for two floats, or for a float and a number."""
    number = type(b) in (int, float) and is_plain(a)
    shape = a.shape if number else _broadcast(a.shape, b.shape) if is_plain(a) and is_plain(b) else None
    return None if shape is None else new(torch.bool, shape)


def _clamp(x: Tensor, min: Any = None, max: Any = None) -> Tensor | None:
    limits = [type(limit) for limit in (min, max) if limit is not None]
    return _unary(x) if limits and all(kind in (int, float) for kind in limits) else None


def _where(condition: Tensor, a: Any, b: Any) -> Tensor | None:
    plain = condition.is_meta and condition.dtype == torch.bool and condition.is_contiguous()
    chosen = _binary(a, b) if plain else None
    shape = None if chosen is None or not chosen.is_contiguous() else _broadcast(condition.shape, chosen.shape)
    return None if shape is None or chosen is None else new(chosen.dtype, shape)


def _broadcast(a: Sequence[int], b: Sequence[int]) -> Sequence[int] | None:
    rank = max(len(a), len(b))
    pairs = list(zip((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b), strict=True))
    fits = all(m == n or m == 1 or n == 1 for m, n in pairs)
    return [n if m == 1 else m for m, n in pairs] if fits else None


# Sums over channels -----------------------------------------------------------------------------------------------


def _linear_module(module: Any, x: Tensor) -> Tensor | None:
    return _linear(x, module._parameters["weight"], module._parameters["bias"])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    fits = x.is_meta and weight.dim() == 2 and x.dtype == weight.dtype and x.shape[-1] == weight.shape[1]
    if not fits or x.dim() == 1 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    return new(x.dtype, (*x.shape[:-1], weight.shape[0]))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor | None:
    if type(is_causal) is not bool or not all(type(number) in (int, float) for number in (dropout_p, scale or 0.0)):
        return None
    alike = query.dtype == key.dtype == value.dtype and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    fits = query.shape[-1] == key.shape[-1] and key.shape[-2] == value.shape[-2]
    meta = query.is_meta and key.is_meta and value.is_meta and query.is_floating_point()
    if not (alike and fits and meta) or query.dim() < 3:
        return None
    if attn_mask is not None:
        scores = [*query.shape[:-1], key.shape[-2]]
        if is_causal or attn_mask.dtype != query.dtype or _broadcast(attn_mask.shape, scores) != scores:
            return None
    return new(query.dtype, (*query.shape[:-1], value.shape[-1]))


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor | None:
    dims = [dim] if isinstance(dim, int) else list(dim)
    known = x.is_meta and x.is_floating_point() and type(keepdim) is bool
    if not known or not all(type(d) is int for d in dims):
        return None
    rank = x.dim()
    reduced = {d % rank for d in dims if -rank <= d < rank}
    if len(reduced) != len(dims) or not reduced:
        return None
    sizes = [1 if i in reduced else n for i, n in enumerate(x.shape)]
    return new(x.dtype, sizes if keepdim else [n for i, n in enumerate(sizes) if i not in reduced])


def _grouped_product(
    x: Tensor, weight: Tensor, *, offs: Tensor, bias: None = None, out_dtype: torch.dtype | None = None
) -> Tensor | None:
    """Also where torch has no such product: on meta tensors of more than 16 bits, and in double precision."""
    fits = is_plain(x, 2) and weight.is_meta and weight.dim() == 3 and x.shape[1] == weight.shape[1]
    if not fits or bias is not None or x.dtype != weight.dtype or offs.shape != weight.shape[:1]:
        return None
    return new(out_dtype or x.dtype, (x.shape[0], weight.shape[2]))


def _our_grouped_product(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor | None:
    return _grouped_product(x, weight, offs=offsets)


def _counts(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor | None:
    """How often each index occurs, of which there are `minlength`; the normal form refuses others."""
    fits = x.is_meta and x.dim() == 1 and weights is None and type(minlength) is int and minlength > 0
    return new(torch.int64, (minlength,)) if fits else None


# Norms and movement -----------------------------------------------------------------------------------------------


def _instance_norm_module(module: Any, x: Tensor) -> Tensor | None:
    return _unary(x) if x.shape[1] == module.num_features else None


def _batch_norm_module(module: Any, x: Tensor) -> Tensor | None:
    known = module.momentum is None or type(module.momentum) in (int, float)
    known &= type(module.eps) in (int, float) and module.eps >= 0 and x.dim() in _BATCHED[type(module)]
    return _instance_norm_module(module, x) if known else None


def _batch_norm(x: Tensor, mean: Tensor, variance: Tensor, *options: Any, **named: Any) -> Tensor | None:  # noqa: ARG001
    return _unary(x) if len(mean) == len(variance) == x.shape[1] else None


def _layer_norm_module(module: Any, x: Tensor) -> Tensor | None:
    parameters = module._parameters
    return _layer_norm(x, module.normalized_shape, parameters["weight"], parameters["bias"], module.eps)


def _layer_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor | None:
    normalized = tuple(normalized_shape)
    fits = bool(normalized) and tuple(x.shape[-len(normalized) :]) == normalized and type(eps) in (int, float)
    fits &= all(vector is None or vector.shape == normalized for vector in (weight, bias))
    if not (fits and x.is_meta and x.is_floating_point()):
        return None
    return x if x.is_contiguous() else new(x.dtype, x.shape)


def _group_norm_module(module: Any, x: Tensor) -> Tensor | None:
    return x if is_plain(x) and x.dim() > 1 and x.shape[1] == module.num_channels else None


def _concatenation(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    rank = first.dim()
    known = first.is_meta and first.is_floating_point() and all(t.is_meta for t in tensors)
    # Of images those that lie with their channels last stay so.
    alike = all(t.dtype == first.dtype and t.dim() == rank and (rank < 4 or t.is_contiguous()) for t in tensors)
    if not (known and alike) or type(dim) is not int or not -rank <= dim < rank:
        return None
    dim %= rank
    shapes = [list(t.shape) for t in tensors]
    total = sum(shape[dim] for shape in shapes)
    for shape in shapes:
        shape[dim] = total
    return new(first.dtype, shapes[0]) if all(shape == shapes[0] for shape in shapes) else None


def _roll(x: Tensor, shifts: Any, dims: Any = ()) -> Tensor | None:
    shifts, dims = ((v,) if isinstance(v, int) else tuple(v) for v in (shifts, dims))
    in_range = len(shifts) == len(dims) and all(-x.dim() <= d < x.dim() for d in dims)
    return x if is_plain(x) and in_range and all(isinstance(shift, int) for shift in shifts) else None


_BATCHED: Mapping[type, Sequence[int]] = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
}
"""How many axes their inputs have."""

_WITHOUT_SETTINGS = frozenset(
    {
        *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid),
        *(nn.LogSigmoid, nn.Softsign, nn.Tanhshrink),
    }
)
"""Activations that have nothing to be set, but that they may write in place."""

MODULES: Mapping[Any, Shape] = {
    **dict.fromkeys(modules(Trait.ELEMENTWISE), _unary_module),
    **{path: _unary_module for known in operators(Trait.ELEMENTWISE) for path in known.foreign_modules},
    nn.GELU: _gelu_module,
    **dict.fromkeys(modules(Trait.PER_CHANNEL), _instance_norm_module),
    **dict.fromkeys(_BATCHED, _batch_norm_module),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), spatial.convolution_module),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), spatial.transposed_module),
    nn.Linear: _linear_module,
    nn.MaxPool2d: spatial.pool_module,
    nn.AvgPool2d: spatial.pool_module,
    nn.AdaptiveAvgPool2d: spatial.adaptive_pool_module,
    nn.LayerNorm: _layer_norm_module,
    nn.GroupNorm: _group_norm_module,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN, GatedLSTM, GatedGRU, GatedRNN), recurrent),
}

_STRICT = frozenset(
    {
        *(_gelu, _gelu_module, _binary, _in_place, _comparison, _clamp, _where),
        *(_linear, _linear_module, _attention, _mean, _concatenation),
        *(_batch_norm_module, _layer_norm, _layer_norm_module),
        *(spatial.convolution_module, spatial.max_pool, spatial.pool_module),
        *(spatial.adaptive_pool, spatial.adaptive_pool_module),
    }
)
"""Formulas that look at all that they are given."""

_ON_EACH = Trait.ELEMENTWISE | Trait.FLOAT
_ON_PAIRS = Trait.BROADCAST | Trait.FLOAT
_COMPARISONS = [f for f in spelled("eq", "ne", "gt", "ge", "lt", "le") if not is_in_place(f)]

FUNCTIONS: Mapping[Any, Shape] = {
    **{f: _unary for known in operators(_ON_EACH) for f in (*known.functions, *known.foreign_functions)},
    **{f: _in_place if is_in_place(f) else _binary for known in operators(_ON_PAIRS) for f in known.functions},
    **{f: _comparison for f in _COMPARISONS if not isinstance(f, str)},
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), spatial.convolution),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), spatial.transposed),
    F.linear: _linear,
    F.gelu: _gelu,
    F.scaled_dot_product_attention: _attention,
    F.max_pool2d: spatial.max_pool,
    F.avg_pool2d: spatial.average_pool,
    F.adaptive_avg_pool2d: spatial.adaptive_pool,
    **dict.fromkeys((F.grouped_mm, torch._grouped_mm), _grouped_product),
    grouped_product: _our_grouped_product,
    torch.bincount: _counts,
    torch.mean: _mean,
    F.interpolate: spatial.resized,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    torch.clamp: _clamp,
    torch.where: _where,
    torch.cat: _concatenation,
    torch.roll: _roll,
    nn.init.kaiming_uniform_: _filled,
}

METHODS: Mapping[Any, Shape] = {
    **{m: _unary for known in operators(_ON_EACH) for m in known.methods},
    **{m: _in_place if is_in_place(m) else _binary for known in operators(_ON_PAIRS) for m in known.methods},
    **{f: _comparison for f in _COMPARISONS if isinstance(f, str)},
    **dict.fromkeys(("__rsub__", "__rdiv__", "__rpow__"), _binary),
    "bincount": _counts,
    "mean": _mean,
    "clamp": _clamp,
    "uniform_": _unary,
}

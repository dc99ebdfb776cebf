"""Shapes, dtypes and strides are those that torch finds out."""

from __future__ import annotations

import operator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure

from graphsurgery.network.gated_layers import GatedLSTM
from graphsurgery.network.operators import Trait, operator_named, part_at
from graphsurgery.network.values.shapes import METHODS, MODULES, ByFormula, result_of


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def check(target, *args, must_know: bool = True, **kwargs) -> None:
    """What we say is what torch gives; where torch refuses, we say nothing."""
    op = "call_module" if isinstance(target, nn.Module) else "call_method" if isinstance(target, str) else "call"
    found = result_of(op, target, args, kwargs)
    try:
        with torch.no_grad():
            expected = getattr(args[0], target)(*args[1:], **kwargs) if op == "call_method" else target(*args, **kwargs)
    except (RuntimeError, ValueError, IndexError, TypeError):
        assert found is None
        return
    if found is None:
        assert not must_know
        return
    assert tree_structure(found) == tree_structure(expected)
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert one.is_meta
        assert (one.shape, one.dtype, strides(one)) == (other.shape, other.dtype, strides(other))


def strides(x: Tensor) -> list[int]:
    """Those that matter: the stride of a single index says nothing."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


@st.composite
def spatial_options(draw, rank: int) -> dict:
    """Options of a convolution or pool, one number or one for each axis."""

    def option(low: int, high: int):
        if draw(st.booleans()):
            return draw(st.integers(low, high))
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    return {"stride": option(1, 3), "padding": option(0, 2), "dilation": option(1, 2)}


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_convolutions(data):
    rank = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from((1, 2, 4)))
    options = data.draw(spatial_options(rank))
    kernel = tuple(data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank))
    bias = data.draw(st.booleans())
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    module = layer(4, 8, kernel, groups=groups, bias=bias, device="meta", **options)
    check(module, meta(2, 4, *sizes))
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    check(function, meta(2, 4, *sizes), meta(8, 4 // groups, *kernel), None, *options.values(), groups)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_transposed_convolutions(data):
    rank = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from((1, 2, 4)))
    options = {**data.draw(spatial_options(rank)), "output_padding": data.draw(st.integers(0, 2))}
    kernel = tuple(data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)))
    x = meta(2, 4, *data.draw(st.lists(st.integers(1, 5), min_size=rank, max_size=rank)))
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    check(layer(4, 8, kernel, groups=groups, device="meta", **options), x, must_know=False)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    check(function, x, meta(4, 8 // groups, *kernel), groups=groups, must_know=False, **options)
    check(function, x, meta(4, 8 // groups, *kernel), meta(8), groups=groups)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_resizes(data):
    x = meta(2, 3, data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    corners = data.draw(st.sampled_from((None, True, False)))
    mode = data.draw(st.sampled_from(("nearest", "bilinear", "bicubic", "nearest-exact", "linear", "area")))
    factor = data.draw(st.floats(0.3, 4))
    size = data.draw(st.integers(1, 9))
    check(F.interpolate, x, size, mode=mode, align_corners=corners, must_know=False)
    check(F.interpolate, x, (size, 4), mode=mode, align_corners=corners, must_know=False)
    check(F.interpolate, x, scale_factor=factor, mode=mode, align_corners=corners, must_know=False)
    check(F.interpolate, x, scale_factor=(factor, 2), must_know=False)
    check(F.interpolate, x, size)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, 3, padding="same", device="meta"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", device="meta"),
        nn.Conv2d(5, 6, 3, device="meta"),
        nn.Conv2d(4, 6, 3, device="meta", dtype=torch.float64),
        nn.MaxPool2d(3, padding=2),
        nn.AdaptiveAvgPool2d((None, 3)),
        nn.Linear(5, 2, device="meta"),
    ],
)
def test_what_is_uncommon_or_wrong_is_left_to_torch(module):
    check(module, meta(2, 4, 8, 8), must_know=False)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_pools(data):
    options = data.draw(spatial_options(2))
    kernel, ceil = data.draw(st.integers(1, 4)), data.draw(st.booleans())
    x = meta(2, 3, data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    check(nn.MaxPool2d(kernel, **options, ceil_mode=ceil), x)
    check(F.max_pool2d, x, kernel, ceil_mode=ceil, **options)
    del options["dilation"]
    check(nn.AvgPool2d(kernel, **options, ceil_mode=ceil), x)
    check(F.avg_pool2d, x, kernel, ceil_mode=ceil, **options)
    check(F.avg_pool2d, x, kernel)
    size = data.draw(st.one_of(st.integers(1, 5), st.tuples(st.integers(1, 5), st.integers(1, 5))))
    check(nn.AdaptiveAvgPool2d(size), x)
    check(F.adaptive_avg_pool2d, x, size)


@st.composite
def tensors(draw, shape: tuple[int, ...]) -> Tensor:
    """A meta tensor of this shape: contiguous, permuted, sliced or expanded."""
    kind = draw(st.sampled_from(("plain", "plain", "permuted", "sliced", "expanded")))
    if kind == "permuted":
        order = draw(st.permutations(range(len(shape))))
        inverse = [order.index(i) for i in range(len(shape))]
        return meta(*(shape[i] for i in order)).permute(inverse)
    if kind == "sliced":
        return meta(*shape[:-1], shape[-1] + 1)[..., 1:]
    if kind == "expanded":
        return meta(1, *shape[1:]).expand(shape)
    return meta(*shape)


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_arithmetic(data):
    shape = data.draw(SHAPES)
    other = tuple(n if data.draw(st.booleans()) else 1 for n in shape)[data.draw(st.integers(0, len(shape) - 1)) :]
    a, b = data.draw(tensors(shape)), data.draw(tensors(other))
    if data.draw(st.booleans()):
        a, b = b, a
    function = data.draw(st.sampled_from((operator.add, operator.sub, torch.mul, operator.truediv, "mul")))
    check(function, a, b, must_know=False)
    check(function, a, 2.5, must_know=False)
    check(operator.iadd, meta(*a.shape), b, must_know=False)
    asked = data.draw(st.sampled_from((operator.lt, torch.ge, "eq")))
    check(asked, a, b, must_know=False)
    check(asked, a, 0, must_know=False)
    flags = data.draw(tensors(shape)) > 0
    check(torch.where, flags, a, b, must_know=False)
    check(torch.where, flags, a, 0.5, must_know=False)


@pytest.mark.parametrize("limits", [(0, 6), (None, 1.5), (0,), (), (meta(3), meta(3)), (True, 2)])
def test_limits(limits):
    check(torch.clamp, meta(2, 3), *limits, must_know={type(n) for n in limits} in ({int}, {type(None), float}))
    check("clamp", meta(2, 3, dtype=torch.int64), *limits, must_know=False)


@pytest.mark.parametrize("channels", [4, 5])
def test_batch_norm(channels):
    check(F.batch_norm, meta(2, 4, 3), meta(channels), meta(channels), meta(channels), must_know=channels == 4)
    check(F.batch_norm, meta(2, 4, 3), None, None, training=True, must_know=False)


def test_a_block_by_formula_runs_what_has_none():
    x = torch.randn(2, 3)
    with ByFormula():
        y = 1 - F.relu(meta(2, 3)) ** 2 / meta(1, 3)
        z = nn.Linear(3, 4, device="meta")(y).cumsum(1)
        assert torch.equal(torch.relu(x), x.clamp(min=0))
    assert (tuple(y.shape), tuple(z.shape), y.is_meta) == ((2, 3), (2, 4), True)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (meta(2, 3), meta(3, dtype=torch.float64)),
        (meta(2, 3, dtype=torch.int64), meta(3, dtype=torch.int64)),
        (meta(2, 3), meta(2)),
        (meta(2, 3), 1j),
        (meta(2, 3, dtype=torch.int64), 2.0),
    ],
)
def test_mixed_types_are_left_to_torch(a, b):
    check(operator.truediv, a, b, must_know=False)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_elementwise_norms_and_movement(data):
    shape = data.draw(SHAPES)
    x = data.draw(tensors(shape))
    for target in (torch.relu, F.gelu, nn.SiLU(), nn.Dropout(0.5), "sigmoid", torch.sqrt):
        check(target, x, must_know=False)
    check(torch.clone, x, memory_format=torch.contiguous_format, must_know=False)
    last = shape[data.draw(st.integers(0, len(shape) - 1)) :]
    check(nn.LayerNorm(last, device="meta"), x)
    check(F.layer_norm, x, last)
    check(torch.roll, x, (1,), (data.draw(st.integers(-5, 5)),), must_know=False)
    dims = data.draw(st.lists(st.integers(-5, 5), max_size=3))
    check(torch.mean, x, dims, data.draw(st.booleans()), must_know=False)
    check("mean", x, dims, keepdim=True, must_know=False)
    check("mean", x, must_know=False)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_linear_and_concatenation(data):
    shape = data.draw(SHAPES)
    x = data.draw(tensors(shape))
    bias = data.draw(st.booleans())
    check(nn.Linear(shape[-1], 3, bias=bias, device="meta"), x, must_know=False)
    check(F.linear, x, meta(3, shape[-1]), meta(3) if bias else None, must_know=False)
    dim = data.draw(st.integers(-len(shape), len(shape)))
    other = list(shape)
    other[data.draw(st.integers(0, len(shape) - 1))] += data.draw(st.integers(0, 1))
    check(torch.cat, [x, meta(*other)], dim, must_know=False)


@pytest.mark.parametrize("mask", [None, (5, 7), (2, 1, 5, 7), (4, 7)])
@pytest.mark.parametrize("lead", [(2,), (2, 3)])
def test_attention(lead, mask):
    q, k, v = meta(*lead, 5, 4), meta(*lead, 7, 4), meta(*lead, 7, 6)
    check(F.scaled_dot_product_attention, q, k, v, None if mask is None else meta(*mask), must_know=False)
    if mask is None:
        check(F.scaled_dot_product_attention, q, k, v, dropout_p=0.1, is_causal=True)
        check(F.scaled_dot_product_attention, q, k, v[..., :3, :], must_know=False)


@pytest.mark.parametrize("module", [nn.BatchNorm2d(4), nn.BatchNorm2d(5), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)])
def test_channel_norms(module):
    check(module.to("meta").eval(), meta(2, 4, 3, 3), must_know=False)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, GatedLSTM])
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_recurrent_layers(kind, data):
    """Of any options, from states that fit, from states of one example too few, and from none."""
    first, both, layers = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.integers(1, 2))
    projected = data.draw(st.sampled_from((0, 2))) if issubclass(kind, nn.LSTM) else 0
    options = {"proj_size": projected} if projected else {}
    layer = kind(3, 4, layers, batch_first=first, bidirectional=both, device="meta", **options).eval()
    x = meta(*data.draw(st.sampled_from(((3, 2, 3), (2, 3, 3), (3, 2, 5), (2, 3)))))
    batch = data.draw(st.sampled_from((2, 3)))
    h, c = (meta(layers * (1 + both), batch, size) for size in (projected or 4, 4))
    given = data.draw(st.sampled_from((None, (h, c) if issubclass(kind, nn.LSTM) else h)))
    check(layer, x, given, must_know=x.dim() == 3)


CLASSES = [
    part_at(kind) if isinstance(kind, str) else kind
    for kind in MODULES
    if str(kind).rpartition(".")[2] != "stochastic_depth"
]


NOT_OF_IMAGES = (nn.modules.conv._ConvNd, nn.LayerNorm, nn.GroupNorm, nn.RNNBase)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if not issubclass(kind, NOT_OF_IMAGES)])
def test_every_module(kind):
    """On an image of four channels, whatever the module takes at construction."""
    options = {nn.Threshold: (0.1, 0.2), nn.Linear: (6, 3), nn.MaxPool2d: (2,), nn.AvgPool2d: (2,)}.get(kind)
    if options is None:
        options = {"StochasticDepth": (0.5, "row"), "AdaptiveAvgPool2d": (2,)}.get(kind.__name__, ())
    normalizes = "Norm" in kind.__name__
    x = meta(2, 4, 6, 6)[(..., 0) if kind.__name__.endswith("1d") else ()]
    x = x.unsqueeze(-1) if kind.__name__.endswith("3d") else x
    check(kind(4, device="meta").eval() if normalizes else kind(*options).to("meta").eval(), x.contiguous())


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    x = meta(2, 4, 6, 6)
    known = operator_named(name)
    pairs = name.startswith("__r") or (known is not None and Trait.BROADCAST in known.traits)
    check(name, x, *{"mean": ((2, 3),), "clamp": (0,), "uniform_": ()}.get(name, (x,) if pairs else ()))


ODD = st.sampled_from([None, True, False, "x", "tanh", 1.5, -1, 0, 1, 2, 3, (1, 2), [1, 1], (2,), (), torch.float64])
"""What a file may give where a setting belongs."""
CALLS = [
    *(F.relu, F.gelu, F.linear, F.layer_norm, F.scaled_dot_product_attention, torch.cat, torch.mean, torch.clamp),
    *(F.conv2d, F.max_pool2d, F.adaptive_avg_pool2d, torch.add, torch.mul, torch.where, operator.iadd),
    *("mean", "clamp", "add", "mul_", "relu_"),
]
LAYERS = [
    *(nn.ReLU, nn.GELU, partial(nn.Conv2d, 4, 4, 1), partial(nn.Linear, 5, 4), partial(nn.BatchNorm2d, 4)),
    *(partial(nn.BatchNorm1d, 4), partial(nn.LayerNorm, 5), partial(nn.AdaptiveAvgPool2d, 1)),
    *(partial(nn.MaxPool2d, 2), partial(nn.AvgPool2d, 2)),
]


def strictly(op: str, target, args, kwargs) -> None:
    """A strict answer is that of torch; where torch refuses the call there is none."""
    found = result_of(op, target, args, kwargs, strict=True)
    if found is not None:
        with torch.no_grad(), torch.device("meta"):
            expected = getattr(args[0], target)(*args[1:], **kwargs) if op == "call_method" else target(*args, **kwargs)
        assert (found.shape, found.dtype, strides(found)) == (expected.shape, expected.dtype, strides(expected))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_strict_answer_looks_at_every_argument_of_a_call(data):
    target = data.draw(st.sampled_from(CALLS))
    x = meta(*data.draw(st.sampled_from([(2, 4, 5, 5), (2, 4, 5), (5, 5), (5,)])))
    given = st.one_of(st.sampled_from([x, meta(4, 4, 1, 1), meta(5, 5), meta(5)]), ODD)
    args = [x, *data.draw(st.lists(given, max_size=4))]
    if target is torch.cat:
        args[0] = [x, data.draw(given)]
    names = [
        "dim",
        "keepdim",
        "approximate",
        "is_causal",
        "scale",
        "dropout_p",
        "eps",
        "padding",
        "groups",
        "ceil_mode",
    ]
    kwargs = data.draw(st.dictionaries(st.sampled_from(names), ODD, max_size=1))
    strictly("call_method" if isinstance(target, str) else "call_function", target, args, kwargs)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_strict_answer_looks_at_every_setting_of_a_layer(data):
    layer = data.draw(st.sampled_from(LAYERS))()
    settings_of = sorted(layer.__constants__)
    for name in data.draw(st.lists(st.sampled_from(settings_of), max_size=2)) if settings_of else ():
        setattr(layer, name, data.draw(ODD))
    x = meta(*data.draw(st.sampled_from([(2, 4, 5, 5), (2, 4, 5), (4, 5)])))
    strictly("call_module", layer.to("meta").eval(), [x], {})

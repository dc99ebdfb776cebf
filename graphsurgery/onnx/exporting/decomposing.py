"""Programs of common operators as torch's exporter wants them, without taking them to pieces."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from graphsurgery.network.outputs.strips import each_axis

Decompose = Callable[[Any, Any], Any]
Promote = Callable[[fx.GraphModule], None]

_ALIKE = ("flatten.using_ints", "reshape.default", "unflatten.int")
"""Views that are composed of others, and are written into a file as those are: one Reshape."""
_CHECKS = ("_assert_scalar.default", "_assert_tensor_metadata.default", "_assert_async.msg")
"""What the exporter takes out itself."""
_IN_PLACE = (
    "relu_", "hardtanh_", "hardswish_", "hardsigmoid_", "silu_", "mish_", "leaky_relu_", "elu_", "sigmoid_", "tanh_",
    "dropout_", "detach_", "index_put_",
)  # fmt: skip


def with_few_decomposed(usual: Decompose) -> Decompose:
    """The exporter's own way, for programs that need it.

    It takes every program to pieces for which it has translations, and follows it once more to do so, which is half of
    the time of an export. Of most networks all operators have one already, but for batch norms, casts and activations
    in place; of these the plain operator is known.
    """

    def decomposed(program: Any, registry: Any) -> Any:
        calls = [node for node in program.graph_module.graph.nodes if node.op == "call_function"]
        others = {node: replace for node in calls if (replace := _substitute(node)) is not None}
        known = _translated(registry)
        if _writes(program) or not all(node in others or _is_said(node, known) for node in calls):
            return usual(program, registry)
        for node, replace in others.items():
            replace(node)
        program.graph_module.recompile()
        return program

    return decomposed


def with_few_promoted(usual: Promote) -> Promote:
    """The exporter's own way to say where numbers become others, for programs in which any do.

    It follows a program once more to find out where operands of two kinds meet. In most there is but float32.
    """

    def promoted(program: fx.GraphModule) -> None:
        values = [tree_leaves(node.meta.get("val")) for node in program.graph.nodes]
        if any(value.dtype != torch.float32 for found in values for value in found if isinstance(value, Tensor)):
            usual(program)

    return promoted


@lru_cache(4)
def _translated(registry: Any) -> Collection[Any]:
    """The operators that have a translation."""
    return {translations[0].fx_target for translations in registry.functions.values()}


def _writes(program: Any) -> bool:
    """Whether a program writes what it gives into a buffer or an input."""
    given = torch.export.graph_signature.OutputKind.USER_OUTPUT
    return any(spec.kind is not given for spec in program.graph_signature.output_specs)


def _is_said(node: fx.Node, known: Collection[Any]) -> bool:
    """Whether a call is translated as it stands, and as the usual way would leave it."""
    if node.target is operator.getitem or _is(node, _CHECKS):
        return True
    if node.target not in known:
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # arithmetic of sizes
    if node.target._schema.is_mutable:
        return False
    return not _is_view(node.target) or not _is_composed(node.target) or _is(node, _ALIKE)


def _is(node: fx.Node, names: Collection[str]) -> bool:
    return str(node.target).removeprefix("aten.") in names


def _is_view(target: Any) -> bool:
    return any(value.alias_info is not None for value in (*target._schema.arguments, *target._schema.returns))


def _is_composed(target: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")


Replacement = Callable[[fx.Node], None]


def _substitute(node: fx.Node) -> Replacement | None:
    """What puts another operator in the place of a call, which computes the same; None where nothing is known to."""
    name = str(node.target).removeprefix("aten.")
    if name in _SUBSTITUTES:
        suits, replace = _SUBSTITUTES[name]
        return replace if suits(node) else None
    return _give_anew if name.partition(".")[0] in _IN_PLACE and _owns(node) else None


def _owns(node: fx.Node) -> bool:
    """Whether a call in place changes only what the call before it has made, and nothing else sees."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or not isinstance(source.target, torch._ops.OpOverload):
        return False
    made = not _is_view(source.target) or str(source.target).split(".")[1] in _IN_PLACE
    return made and all(_reads(user) for user in source.users if user is not node)


def _reads(user: fx.Node) -> bool:
    return isinstance(user.target, torch._ops.OpOverload) and not _is_view(user.target)


def _rank(node: Any) -> int:
    return int(node.meta["val"].dim())


def _give_anew(node: fx.Node) -> None:
    """The plain twin of a call in place; who comes later and reads what it has changed reads its result."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    assert isinstance(node.target, torch._ops.OpOverload)
    plain, _, overload = str(node.target).removeprefix("aten.").partition("_.")
    node.target = getattr(getattr(torch.ops.aten, plain), overload)
    source.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and user > node)


def _normalise(node: fx.Node) -> None:
    x, weight, bias, mean, variance, _, momentum, epsilon, *_ = node.args
    value = node.meta["val"]
    with node.graph.inserting_before(node):
        norm = node.graph.call_function(
            torch.ops.aten._native_batch_norm_legit_no_training.default,
            (x, weight, bias, mean, variance, momentum, epsilon),
        )
    norm.meta = {**node.meta, "val": (value, value.new_empty(0), value.new_empty(0))}
    node.target, node.args, node.kwargs = operator.getitem, (norm, 0), {}


def _sort(node: fx.Node) -> None:
    """The places that a sort gives beside the values."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    with node.graph.inserting_before(node):
        both = node.graph.call_function(_aten.sort.default, node.args, node.kwargs)
    both.meta = {**node.meta, "val": (x.meta["val"], node.meta["val"])}
    node.target, node.args, node.kwargs = operator.getitem, (both, 1), {}


def _cast(node: fx.Node) -> None:
    """A cast, and nothing where numbers stay what they are: in a file there are no devices."""
    x, kind = node.args[0], node.meta["val"].dtype
    assert isinstance(x, fx.Node)
    stays = x.meta["val"].dtype is kind
    node.target, node.args, node.kwargs = (
        (_aten.alias.default, (x,), {}) if stays else (_aten._to_copy.default, (x,), {"dtype": kind})
    )


def _lay_out(node: fx.Node) -> None:
    """A copy, as what follows may look at it as at rows."""
    node.target, node.kwargs = _aten.clone.default, {"memory_format": torch.contiguous_format}


def _by(target: Any, arguments: Callable[..., tuple[Any, ...]]) -> Replacement:
    """An operator, and what it is given of the arguments of the other."""

    def replace(node: fx.Node) -> None:
        node.target, node.args, node.kwargs = target, arguments(*node.args, **node.kwargs), {}

    return replace


def _always(_: fx.Node) -> bool:
    return True


def _does_nothing(node: fx.Node) -> bool:
    return _rank(node) == _rank(node.args[0])


def _permutation(x: fx.Node, source: int, to: int) -> tuple[fx.Node, list[int]]:
    axes = list(range(_rank(x)))
    axes.insert(to % len(axes), axes.pop(source % len(axes)))
    return x, axes


def _pieces(x: fx.Node, chunks: int, dim: int = 0) -> tuple[fx.Node, int, int]:
    return x, -(-x.meta["val"].shape[dim] // chunks), dim


def _has_known_size(node: fx.Node) -> bool:
    x, _, dim, *_ = (*node.args, node.kwargs.get("dim", 0))
    size = x.meta["val"].shape[dim]  # type: ignore[union-attr]
    return isinstance(size, int) and size > 0


def _transposed(  # in the order of torch's own
    x: fx.Node, weight: fx.Node, bias: Any = None, stride: Any = 1, padding: Any = 0, more: Any = 0, groups: int = 1,
    dilation: Any = 1,
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments of the operator of all convolutions, which is told that this one is transposed."""
    each = partial(each_axis, axes=_rank(x) - 2)
    return x, weight, bias, each(stride), each(padding), each(dilation), True, each(more), groups


def _has_a_batch(node: fx.Node) -> bool:
    return _rank(node.args[0]) == _rank(node.args[1])


def _keeps_its_layout(node: fx.Node) -> bool:
    return "memory_format" not in node.kwargs


def _is_of_all(node: fx.Node) -> bool:
    return all(size == 1 for size in node.args[1])  # type: ignore[union-attr]


def _is_plain_norm(node: fx.Node) -> bool:
    return node.args[3] is not None and node.args[5] is False


_aten = torch.ops.aten
_SUBSTITUTES: dict[str, tuple[Callable[[fx.Node], bool], Replacement]] = {
    "batch_norm.default": (_is_plain_norm, _normalise),
    "flatten.using_ints": (_does_nothing, _by(_aten.alias.default, lambda x, *_, **__: (x,))),
    "adaptive_avg_pool2d.default": (_is_of_all, _by(_aten.mean.dim, lambda x, _: (x, [-1, -2], True))),
    "adaptive_avg_pool3d.default": (_is_of_all, _by(_aten.mean.dim, lambda x, _: (x, [-1, -2, -3], True))),
    "narrow.default": (
        lambda node: all(isinstance(number, int) for number in node.args[2:]),
        _by(_aten.slice.Tensor, lambda x, dim, start, length: (x, dim, start, start + length)),
    ),
    "movedim.int": (_always, _by(_aten.permute.default, _permutation)),
    "square.default": (_always, _by(_aten.pow.Tensor_Scalar, lambda x: (x, 2))),
    "chunk.default": (_has_known_size, _by(_aten.split.Tensor, _pieces)),
    "argsort.default": (_always, _sort),
    "contiguous.default": (_keeps_its_layout, _lay_out),
    "__and__.Tensor": (_always, _by(_aten.bitwise_and.Tensor, lambda x, y: (x, y))),
    "__or__.Tensor": (_always, _by(_aten.bitwise_or.Tensor, lambda x, y: (x, y))),
    **{f"to.{kind}": (_keeps_its_layout, _cast) for kind in ("device", "dtype", "dtype_layout")},
    **{
        f"conv_transpose{kind}": (_has_a_batch, _by(_aten.convolution.default, _transposed))
        for kind in ("1d.default", "2d.input", "3d.input")
    },
}
"""By operator: on which calls another computes the same, and what puts it in their place."""

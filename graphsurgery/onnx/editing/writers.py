"""Operators of ONNX for the layers and functions that passes put into a network.

Each writer says by which operators a call is computed, in every opset from 9. No size of the batch stands in them.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphsurgery.errors import UnsupportedError
from graphsurgery.network import layers
from graphsurgery.network.operators import TorchOperator, Trait, is_in_place, operators
from graphsurgery.onnx.editing.file_graph import FileGraph
from graphsurgery.onnx.files.storage import Array

_INT64_MAX = 2**63 - 1


class Writer:
    """Collects operators and weights for the nodes of a network.

    Args:
        module: the network.
        opset: of the file.
        dtype: of the floating numbers in the file.
        file: gets the operators and constants.
        value: the name of the value in the file that a node of the network gives.
        stored: the name of the constant of the file that holds a tensor of the network as it is, if any.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        opset: int,
        dtype: np.dtype[Any],
        file: FileGraph,
        value: Callable[[fx.Node], str],
        stored: Callable[[str, Array], str | None],
    ) -> None:
        self.module, self.opset, self.dtype, self.file = module, opset, dtype, file
        self.value, self.stored = value, stored
        self._known: dict[tuple[str, str], str] = {}
        self._at = ""

    def write(self, node: fx.Node, output: str = "", name: str = "") -> str:
        """Write the operators of a node; returns the name of the value that they give.

        Args:
            node: of the network.
            output: the name that the value must have; by default one after the node.
            name: of the operator that gives it.

        Raises:
            UnsupportedError: there is no operator for it, or not with these options.
        """
        kind: Any = type(self.module.get_submodule(str(node.target))) if node.op == "call_module" else node.target
        writer = WRITERS.get(kind) if node.op.startswith("call_") else None
        if writer is None:
            raise UnsupportedError(f"{node.name} ({word(node)}) is new, and is not written as operators of a file")
        kwargs = dict(node.kwargs)
        if node.op == "call_module":
            kwargs["at"] = str(node.target)
        before, outer = self.file.last, self._at
        self._at = str(node.target) if node.op == "call_module" else node.name
        try:
            given = inspect.signature(writer).bind(self, *node.args, **kwargs)
        except TypeError as cause:
            raise UnsupportedError(
                f"{node.name} ({word(node)}) is new, and has options that are not written ({cause})"
            ) from cause
        found = writer(*given.args, **given.kwargs)
        self._at = outer
        if not output:
            return found
        if self.file.last in (before, "") or self.file.last != found:
            self.op("Identity", found)
        self.file.become(output, name)
        return output

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator; returns the name of its value."""
        return self.file.operator(kind, inputs, self.file.fresh(f"{self._at or 'inserted'}/{kind}"), attributes)

    def constant(self, array: Any, name: str) -> str:
        """Add a constant under a name, or under one like it that is free; floating numbers get the file's dtype."""
        array = np.asarray(array)
        return self.file.constant(np.asarray(array, self.dtype if array.dtype.kind == "f" else array.dtype), name)

    def ints(self, numbers: Sequence[int]) -> str:
        return self.constant(np.array(numbers, np.int64), f"{self._at}/sizes")

    def parameter(self, path: str, layout: str = "", form: Callable[[Array], Array] = lambda array: array) -> str:
        """The constant that holds a parameter or buffer, in a form; one for all that read it so."""
        if (path, layout) not in self._known:
            array = form(self.array(path))
            self._known[path, layout] = self.stored(path, array) or self.constant(array, path)
        return self._known[path, layout]

    def array(self, path: str) -> Array:
        """The numbers of a parameter or buffer."""
        owner, _, name = path.rpartition(".")
        tensor: Tensor = getattr(self.module.get_submodule(owner), name)
        return np.asarray(tensor.detach().cpu().numpy())

    def operand(self, value: Any) -> str:
        """A value of the file for an operand: a node or a floating number."""
        if isinstance(value, fx.Node):
            return self.value(value)
        if isinstance(value, (int, float)):
            return self.constant(np.array(value, self.dtype), f"{self._at}/number")
        raise UnsupportedError(f"{self._at} is new, and has an operand that is not written ({value!r})")

    def along(self, vector: fx.Node, axis: int, rank: int, groups: int = 1) -> str:
        """A vector `[channels]`, once for each group, as the factors along an axis of a tensor of this rank."""
        shape = [-1] + [1] * (rank - 1 - axis % rank)
        if vector.op != "get_attr" and groups == 1:
            return self.op("Reshape", self.value(vector), self.ints(shape))
        if vector.op != "get_attr":
            raise UnsupportedError(f"{self._at} is new, and has computed factors for each of its groups")
        layout = f"{shape} {groups}"
        return self.parameter(str(vector.target), layout, lambda array: np.tile(array, groups).reshape(shape))

    def reduce(self, kind: str, x: str, axes: Sequence[int], *, keep: bool = True) -> str:
        """`ReduceSum` or `ReduceMean`, whose axes became an input in opset 13 and 18."""
        if self.opset >= {"ReduceSum": 13, "ReduceMean": 18}[kind]:
            return self.op(kind, x, self.ints(axes), keepdims=int(keep))
        return self.op(kind, x, axes=list(axes), keepdims=int(keep))

    def slice(self, x: str, starts: Sequence[int], stops: Sequence[int], axes: Sequence[int]) -> str:
        """`Slice`, whose limits became inputs in opset 10."""
        if self.opset < 10:
            return self.op("Slice", x, starts=list(starts), ends=list(stops), axes=list(axes))
        return self.op("Slice", x, self.ints(starts), self.ints(stops), self.ints(axes))

    def shape(self, x: str, start: int, stop: int = _INT64_MAX) -> str:
        """Some of the sizes of a value."""
        return self.slice(self.op("Shape", x), [start], [stop], [0])

    def root(self, square: str, eps: float) -> str:
        """`sqrt(square + eps)`."""
        return self.op("Sqrt", self.op("Add", square, self.constant(np.array(eps, self.dtype), f"{self._at}/eps")))


_Written = Callable[..., str]
WRITERS: dict[Any, _Written] = {}
"""By class of layer, function, or name of a method."""


def writes(*kinds: Any) -> Callable[[_Written], _Written]:
    def add(function: _Written) -> _Written:
        WRITERS.update(dict.fromkeys(kinds, function))
        return function

    return add


def word(node: fx.Node) -> str:
    """What a node does, in one word."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        return "layer" if owner is None else type(owner.get_submodule(str(node.target))).__name__
    if node.op in ("placeholder", "output", "get_attr"):
        return node.op
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _rank(x: fx.Node) -> int:
    return int(x.meta["value"].dim())


def _layer(w: Writer, at: str) -> Any:
    return w.module.get_submodule(at)


# Layers.


@writes(nn.Linear)
def _linear(w: Writer, x: fx.Node, *, at: str) -> str:
    layer = _layer(w, at)
    bias = [w.parameter(f"{at}.bias")] if layer.bias is not None else []
    if _rank(x) == 2 and (bias or w.opset >= 11):  # before, a Gemm had to have a bias
        return w.op("Gemm", w.value(x), w.parameter(f"{at}.weight"), *bias, transB=1)
    product = w.op("MatMul", w.value(x), w.parameter(f"{at}.weight", "transposed", np.transpose))
    return w.op("Add", product, *bias) if bias else product


@writes(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(w: Writer, x: fx.Node, *, at: str) -> str:
    layer = _layer(w, at)
    if layer.padding_mode != "zeros" or layer.padding == "same":
        raise UnsupportedError(f"{at} is new, and its padding ({layer.padding}, {layer.padding_mode}) is not written")
    padding = [0] * len(layer.kernel_size) if layer.padding == "valid" else list(layer.padding)
    bias = [w.parameter(f"{at}.bias")] if layer.bias is not None else []
    return w.op(
        "Conv", w.value(x), w.parameter(f"{at}.weight"), *bias, kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride), dilations=list(layer.dilation), group=layer.groups, pads=padding * 2,
    )  # fmt: skip


@writes(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(w: Writer, x: fx.Node, *, at: str) -> str:
    layer = _layer(w, at)
    if layer.weight is None or layer.running_mean is None:
        raise UnsupportedError(f"{at} is new, and a batch norm without scale or statistics is not written")
    vectors = [w.parameter(f"{at}.{name}") for name in ("weight", "bias", "running_mean", "running_var")]
    return w.op("BatchNormalization", w.value(x), *vectors, epsilon=layer.eps)


@writes(nn.Identity, nn.Dropout, nn.Dropout2d)
def _same(w: Writer, x: fx.Node, *, at: str) -> str:  # noqa: ARG001
    return w.value(x)


# Factors, and norms of groups of channels.


@writes(layers.weigh)
def _weigh(w: Writer, x: fx.Node, dim: int, factors: fx.Node) -> str:
    groups = x.meta["value"].shape[dim] // len(factors.meta["value"])
    return w.op("Mul", w.value(x), w.along(factors, dim, _rank(x), groups))


@writes(layers.pick)
def _pick(w: Writer, x: fx.Node, dim: int, places: Sequence[int], like: fx.Node | None = None) -> str:  # noqa: ARG001
    return w.op("Gather", w.value(x), w.ints(places), axis=dim % _rank(x))


@writes(layers.spread)
def _spread(w: Writer, x: fx.Node, dim: int, rounds: Sequence[Sequence[int]]) -> str:
    axis, found = dim % _rank(x), ""
    for places in rounds:
        part = w.op("Gather", w.value(x), w.ints([max(place, 0) for place in places]), axis=axis)
        if -1 in places:
            there = np.array([float(place >= 0) for place in places])
            shape = [-1 if k == axis else 1 for k in range(_rank(x))]
            part = w.op("Mul", part, w.constant(there.reshape(shape), f"{x.name}/there"))
        found = w.op("Add", found, part) if found else part
    return found


@writes(layers.grouped_norm)
def _grouped_norm(
    w: Writer, x: fx.Node, members: fx.Node, weight: fx.Node | None = None, bias: fx.Node | None = None, *,
    dim: int = -1, positions: bool = False, eps: float | None = 1e-5, centred: bool = True,
    power: float | None = None, affine: int | None = None, blocks: bool = False,  # noqa: ARG001
) -> str:  # fmt: skip
    """Two products give what is counted in the group of each channel, beside that channel."""
    rank, array = _rank(x), w.array(str(members.target)).astype(np.float64)
    if power == math.inf:
        raise UnsupportedError(f"{w.value(x)} is divided by the largest of each group, which is not written")
    counts = array if power is not None else array / np.maximum(array.sum(0), np.finfo(np.float32).tiny)
    pair = w.constant(counts, str(members.target)), w.constant((array > 0).T * 1.0, f"{members.target}/own")
    axis = dim % rank
    order = [*(at for at in range(rank) if at != axis), axis]

    def in_group(v: str) -> str:
        v = w.reduce("ReduceMean", v, list(range(axis + 1, rank))) if positions and axis + 1 < rank else v
        v = v if axis == rank - 1 else w.op("Transpose", v, perm=order)
        v = w.op("MatMul", w.op("MatMul", v, pair[0]), pair[1])
        return v if axis == rank - 1 else w.op("Transpose", v, perm=[order.index(at) for at in range(rank)])

    y = w.value(x)
    if power is not None:
        total = in_group(w.op("Pow", w.op("Abs", y), w.operand(float(power))))
        y = w.op("Div", y, w.op("Max", w.op("Pow", total, w.operand(1 / power)), w.operand(float(eps or 0))))
    else:
        eps = torch.finfo(x.meta["value"].dtype).eps if eps is None else eps
        y = w.op("Sub", y, in_group(y)) if centred else y
        y = w.op("Div", y, w.root(in_group(w.op("Mul", y, y)), eps))
    along = dim if affine is None else affine
    y = y if weight is None else w.op("Mul", y, w.along(weight, along, rank))
    return y if bias is None else w.op("Add", y, w.along(bias, along, rank))


# Arithmetic.


def _spellings(known: TorchOperator) -> Iterator[Any]:
    return (spelling for spelling in known.spellings if not is_in_place(spelling))


def _activation(known: TorchOperator) -> None:
    @writes(*_spellings(known))
    def write(w: Writer, x: fx.Node, *, at: str = "", inplace: bool = False) -> str:  # noqa: ARG001
        if at and _layer(w, at).extra_repr() not in ("", "inplace=True"):
            raise UnsupportedError(f"{at} is new, and its options are not written")
        return w.op(_of_version(w, known), w.value(x))


def _arithmetic(known: TorchOperator) -> None:
    @writes(*_spellings(known))
    def write(w: Writer, a: Any, b: Any) -> str:
        return w.op(_of_version(w, known), w.operand(a), w.operand(b))


def _of_version(w: Writer, known: TorchOperator) -> str:
    """The ONNX operator, if the opset of the file has it."""
    assert known.onnx is not None
    try:
        onnx.defs.get_schema(known.onnx, w.opset)
    except onnx.defs.SchemaError as missing:
        raise UnsupportedError(f"{w._at} is new, and opset {w.opset} has no {known.onnx}") from missing
    return known.onnx


for _known in operators(Trait.FLOAT):
    if _known.onnx is not None:
        (_activation if Trait.ELEMENTWISE in _known.traits else _arithmetic)(_known)


@writes(torch.mean, "mean")
def _mean(w: Writer, x: fx.Node, dim: Any, keepdim: bool = False) -> str:
    return w.reduce("ReduceMean", w.value(x), [dim] if isinstance(dim, int) else dim, keep=keepdim)


@writes(torch.sum, "sum")
def _sum(w: Writer, x: fx.Node, dim: Any, keepdim: bool = False) -> str:
    return w.reduce("ReduceSum", w.value(x), [dim] if isinstance(dim, int) else dim, keep=keepdim)


# Movement.


@writes(torch.permute, "permute")
def _permute(w: Writer, x: fx.Node, *dims: Any) -> str:
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], (list, tuple)) else dims
    return w.op("Transpose", w.value(x), perm=[axis % _rank(x) for axis in order])


@writes(torch.transpose, "transpose")
def _transpose(w: Writer, x: fx.Node, dim0: int, dim1: int) -> str:
    order = list(range(_rank(x)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return w.op("Transpose", w.value(x), perm=order)


@writes(torch.reshape, "reshape", "view")
def _reshape(w: Writer, x: fx.Node, *shape: Any) -> str:
    entries = shape[0] if len(shape) == 1 and isinstance(shape[0], (list, tuple)) else shape
    return w.op("Reshape", w.value(x), w.ints(list(_kept_sizes(w, x, entries))))


def _kept_sizes(w: Writer, x: fx.Node, entries: Sequence[Any]) -> Iterator[int]:
    """The entries of a target; a size that is computed has to be that of what is reshaped, at the same place."""
    for place, entry in enumerate(entries):
        if isinstance(entry, int):
            yield entry
        elif place < _rank(x) and entry.meta["value"] == x.meta["value"].shape[place]:
            yield 0
        else:
            raise UnsupportedError(f"{w.value(x)} is reshaped to a size that is computed, which is not written")


@writes(torch.flatten, "flatten")
def _flatten(w: Writer, x: fx.Node, start_dim: int = 0, end_dim: int = -1) -> str:
    start, stop = start_dim % _rank(x), end_dim % _rank(x) + 1
    return _with_sizes(w, x, start, [-1], stop)


@writes(torch.unflatten, "unflatten")
def _unflatten(w: Writer, x: fx.Node, dim: int, sizes: Sequence[int]) -> str:
    axis = dim % _rank(x)
    return _with_sizes(w, x, axis, list(sizes), axis + 1)


def _with_sizes(w: Writer, x: fx.Node, start: int, sizes: Sequence[int], stop: int) -> str:
    """A reshape of the axes from `start` to `stop`, whatever the sizes of the others are."""
    parts = [w.ints([*[0] * start, *sizes])]
    if stop < _rank(x):
        parts.append(w.shape(w.value(x), stop))
    return w.op("Reshape", w.value(x), parts[0] if len(parts) == 1 else w.op("Concat", *parts, axis=0))


@writes(torch.cat, torch.concat)
def _cat(w: Writer, values: Sequence[fx.Node], dim: int = 0) -> str:
    return w.op("Concat", *(w.value(x) for x in values), axis=dim % _rank(values[0]))


@writes(torch.index_select, "index_select")
def _index_select(w: Writer, x: fx.Node, dim: int, index: fx.Node) -> str:
    return w.op("Gather", w.value(x), w.value(index), axis=dim % _rank(x))


@writes(operator.getitem)
def _getitem(w: Writer, x: fx.Node, index: Any) -> str:
    entries = list(enumerate(index if isinstance(index, tuple) else (index,)))
    if not isinstance(x.meta["value"], Tensor) or any(not isinstance(e, (slice, fx.Node)) for _, e in entries):
        raise UnsupportedError(f"{w._at} is new, and an index {index} is not written")
    lookups = [(axis, entry) for axis, entry in entries if isinstance(entry, fx.Node)]
    slices = [(axis, entry) for axis, entry in entries if isinstance(entry, slice) and entry != slice(None)]
    limits = [limit for _, entry in slices for limit in (entry.start, entry.stop)]
    steps = {entry.step for _, entry in slices}
    if len(lookups) > 1 or not steps <= {None, 1} or any(isinstance(limit, fx.Node) for limit in limits):
        raise UnsupportedError(f"{w._at} is new, and an index {index} is not written")
    value = w.value(x)
    if slices:
        starts = [entry.start or 0 for _, entry in slices]
        stops = [_INT64_MAX if entry.stop is None else entry.stop for _, entry in slices]
        value = w.slice(value, starts, stops, [axis for axis, _ in slices])
    for axis, entry in lookups:
        value = w.op("Gather", value, w.value(entry), axis=axis)
    return value


@writes("contiguous", "clone", torch.clone)
def _itself(w: Writer, x: fx.Node) -> str:
    return w.value(x)


@writes(nn.SiLU, F.silu)
def _silu(w: Writer, x: fx.Node, *, at: str = "", inplace: bool = False) -> str:  # noqa: ARG001
    return w.op("Mul", w.value(x), w.op("Sigmoid", w.value(x)))


@writes(nn.GELU)
def _gelu(w: Writer, x: fx.Node, *, at: str) -> str:
    if _layer(w, at).approximate != "none":
        raise UnsupportedError(f"{at} is new, and an approximate GELU is not written")
    normal = w.op("Add", w.op("Erf", w.op("Mul", w.value(x), w.operand(math.sqrt(0.5)))), w.operand(1.0))
    return w.op("Mul", w.op("Mul", w.value(x), normal), w.operand(0.5))

"""The large weights of an `.onnx` file, read where they lie and written one after the other.

A model without them is small. They are mapped from the file itself or from those beside it, so that they take memory
only while they are looked at, and no file is too large.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import external_data_helper, helper, numpy_helper
from onnx.helper import tensor_dtype_to_np_dtype

Array = np.ndarray[Any, Any]

LARGE = 1024
"""From so many bytes on a weight is left out of the model."""

ONE_FILE = 2**31 - 1
"""What one file can hold: protobuf's limit."""

_ALIGNED = 4096
_GRAPH, _INITIALIZER, _RAW = 7, 5, 9
_PLAIN = frozenset(
    getattr(onnx.TensorProto, name) for name in
    ["FLOAT", "DOUBLE", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL", "FLOAT16"]
)  # fmt: skip
"""Types of numbers that lie in a file as in memory."""


@dataclass(frozen=True)
class Weights:
    """The weights that a model has been left without.

    Attributes:
        arrays: read-only, by name.
        maps: of the files that they lie in.
        outside: whether some lie in files beside the model.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    maps: list[mmap.mmap] = field(default_factory=list)
    outside: bool = False

    def release(self) -> None:
        """Give back the memory of what has been looked at; it is read again where it is needed again."""
        for mapped in self.maps:
            if hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)


def open_model(path: Path) -> tuple[onnx.ModelProto, Weights]:
    """A model without the large weights that lie in its file as they are in memory, and these.

    Raises:
        ValueError: the file is no model in the format of protobuf, or damaged.
    """
    found = Weights()
    if not path.stat().st_size:  # which cannot be mapped
        return onnx.ModelProto(), found
    with path.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    places: dict[str, tuple[int, int]] = {}
    model = onnx.ModelProto()
    model.ParseFromString(_without_weights(whole, places))
    for tensor in model.graph.initializer:
        if tensor.name in places:
            start, length = places[tensor.name]
            found.arrays[tensor.name] = _array(tensor, whole, start, length)
    if places:
        found.maps.append(whole)
    return model, found


def map_outside(model: onnx.ModelProto, weights: Weights, folder: Path) -> Weights:
    """Map the large weights that lie in files beside the model, too.

    Raises:
        ValueError: the bytes of one do not fit its shape.
    """
    maps: dict[str, mmap.mmap] = {}
    for tensor in model.graph.initializer:
        if not external_data_helper.uses_external_data(tensor) or tensor.data_type not in _PLAIN:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        size = bytes_of(tensor)
        if size < LARGE:
            continue
        location = entries["location"]
        if location not in maps:
            with (folder / location).open("rb") as file:
                maps[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = int(entries.get("offset", 0))
        weights.arrays[tensor.name] = _array(tensor, maps[location], start, int(entries.get("length", size)))
    outside = weights.outside or any(external_data_helper.uses_external_data(t) for t in model.graph.initializer)
    return Weights(weights.arrays, [*weights.maps, *maps.values()], outside)


def save_model(
    model: onnx.ModelProto, arrays: Mapping[str, Callable[[], Array]], path: Path, beside: Path | None
) -> None:
    """Write a model, one weight after the other.

    Args:
        model: its initializers may lack their numbers.
        arrays: gives the numbers of those that do, by name.
        path: of the model.
        beside: the file for weights beside the model; None puts them into the model.
    """
    if beside is not None:
        with beside.open("wb") as data:
            for tensor in model.graph.initializer:
                if tensor.name in arrays:
                    _put_outside(tensor, arrays[tensor.name](), data, beside.name)
        path.write_bytes(model.SerializeToString())
        return
    head, graph = onnx.ModelProto(), onnx.GraphProto()
    head.CopyFrom(model)
    head.ClearField("graph")
    graph.CopyFrom(model.graph)
    graph.ClearField("initializer")
    body = graph.SerializeToString()
    following = [bytes_of(tensor) if tensor.name in arrays else 0 for tensor in model.graph.initializer]
    parts = [_encoded(tensor, count) for tensor, count in zip(model.graph.initializer, following, strict=True)]
    with path.open("wb") as file:
        file.write(head.SerializeToString() + _key(_GRAPH, len(body) + sum(map(len, parts)) + sum(following)) + body)
        for tensor, part in zip(model.graph.initializer, parts, strict=True):
            file.write(part)
            if tensor.name in arrays:
                file.write(np.ascontiguousarray(arrays[tensor.name]()).reshape(-1).view(np.uint8).data)


def size_of(model: onnx.ModelProto, arrays: Mapping[str, Any]) -> int:
    """About how many bytes a model with its weights has."""
    return model.ByteSize() + sum(bytes_of(t) for t in model.graph.initializer if t.name in arrays)


def header(name: str, array: Array) -> onnx.TensorProto:
    """An initializer without its numbers."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.TensorProto(name=name, data_type=kind, dims=array.shape)


def bare(tensor: onnx.TensorProto) -> None:
    """Take its numbers, or the place of them, from an initializer."""
    for name in ("raw_data", "external_data", "data_location"):
        tensor.ClearField(name)


def refill(tensor: onnx.TensorProto, array: Array) -> None:
    """Give an initializer other numbers; its name and what is noted of it stay."""
    new = numpy_helper.from_array(np.ascontiguousarray(array), tensor.name)
    new.doc_string = tensor.doc_string
    new.metadata_props.extend(tensor.metadata_props)
    tensor.CopyFrom(new)


def _put_outside(tensor: onnx.TensorProto, array: Array, data: BinaryIO, location: str) -> None:
    array = np.ascontiguousarray(array)
    if array.nbytes >= 2**20:
        data.write(b"\0" * (-data.tell() % _ALIGNED))
    start = data.tell()
    data.write(array.reshape(-1).view(np.uint8).data)
    bare(tensor)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", start), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))


def bytes_of(tensor: onnx.TensorProto) -> int:
    """What the numbers of a tensor take, by its shape and type; they are not read."""
    return math.prod(tensor.dims) * tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _encoded(tensor: onnx.TensorProto, following: int) -> bytes:
    """An initializer as a field of its graph, up to where its numbers follow."""
    own = tensor.SerializeToString() + (_key(_RAW, following) if following else b"")
    return _key(_INITIALIZER, len(own) + following) + own


def _array(tensor: onnx.TensorProto, mapped: mmap.mmap, start: int, length: int) -> Array:
    dtype = tensor_dtype_to_np_dtype(tensor.data_type)
    count = math.prod(tensor.dims)
    if min(tensor.dims, default=0) < 0 or length != count * dtype.itemsize or start + length > len(mapped):
        raise ValueError(f"tensor {tensor.name} is damaged: {length} bytes do not fit {list(tensor.dims)}")
    return np.frombuffer(mapped, dtype, count, start).reshape(tuple(tensor.dims))


# The wire format of protobuf: a message is a sequence of fields, each with its number, its type and its bytes.


def _without_weights(data: mmap.mmap, places: dict[str, tuple[int, int]]) -> bytes:
    """A model without large raw weights; `places` learns where they are."""
    kept = []
    for number, start, inner, stop in _fields(data, 0, len(data)):
        if number != _GRAPH:
            kept.append(data[start:stop])
            continue
        parts = []
        for inside, begin, content, end in _fields(data, inner, stop):
            large = inside == _INITIALIZER and end - content >= LARGE
            whole = _initializer(data, content, end, places) if large else None
            parts.append(data[begin:end] if whole is None else _key(_INITIALIZER, len(whole)) + whole)
        kept += [_key(_GRAPH, sum(map(len, parts))), *parts]
    return b"".join(kept)


def _initializer(data: mmap.mmap, start: int, stop: int, places: dict[str, tuple[int, int]]) -> bytes | None:
    """An initializer without its raw numbers, if it has many and of a plain type."""
    fields = list(_fields(data, start, stop))
    raw = [(inner, end) for number, _, inner, end in fields if number == _RAW]
    if len(raw) != 1 or raw[0][1] - raw[0][0] < LARGE:
        return None
    rest = b"".join(data[begin:end] for number, begin, _, end in fields if number != _RAW)
    tensor = onnx.TensorProto()
    tensor.ParseFromString(rest)
    if tensor.data_type not in _PLAIN or tensor.name in places:
        return None
    places[tensor.name] = raw[0][0], raw[0][1] - raw[0][0]
    return rest


def _fields(data: mmap.mmap, position: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """The number of each field of a message, where it starts, where its content does, and where it ends."""
    while position < stop:
        start = position
        key, position = _read_varint(data, position, stop)
        kind = key & 7
        if kind == 0:
            inner, (_, position) = position, _read_varint(data, position, stop)
        elif kind == 2:
            length, position = _read_varint(data, position, stop)
            inner, position = position, position + length
        elif kind in (1, 5):
            inner, position = position, position + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"a field of type {kind}")
        if position > stop:
            raise ValueError("truncated")
        yield key >> 3, start, inner, position


def _read_varint(data: mmap.mmap, position: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while position < stop and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("truncated")


def _key(number: int, length: int) -> bytes:
    """What stands in front of the content of a field that has a length."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])

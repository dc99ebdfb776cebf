"""Places that a pool gives, and that only lead back: torch counts them in each channel, a file in all of them.

`MaxPool` of a file says which number of its whole input, over examples and channels, is the largest of a window. In
torch it is which one of the channel's. The two mean the same to a `MaxUnpool` that fills the shape which was pooled, so
where nothing else reads them they are torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphsurgery.onnx.importing.operators import per_axis
from graphsurgery.onnx.importing.program import OnnxProgram, Operator

PLACES_AT = 1
"""Where a pool gives the places, and where what leads back reads them."""
_SHAPE_AT = 2


def only_lead_back(file: OnnxProgram, pool: Operator, sizes: Sequence[int]) -> bool:
    """Whether the places of a pool are only read by what fills the shape that was pooled.

    Args:
        file: that it is from.
        pool: the operator.
        sizes: of the axes that it pools.
    """
    places = pool.outputs[PLACES_AT]
    kernel, strides, pads = _window(pool, len(sizes))
    ends = zip(sizes, kernel, strides, pads, pads[len(sizes) :], strict=False)
    whole = all((size + first + last - length) % stride == 0 for size, length, stride, first, last in ends)
    even = pads[: len(sizes)] == pads[len(sizes) :] and max(per_axis(pool, "dilations", len(sizes))) == 1
    if not (whole and even) or pool.attributes.get("storage_order"):  # which is that of columns
        return False
    if pool.attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        return False
    if places in map(file.name, file.outputs):
        return False
    readers = [reader for reader in file.operators if places in map(file.name, reader.inputs)]
    return all(_fills(file, reader, places, pool, sizes) for reader in readers)


def _fills(file: OnnxProgram, reader: Operator, places: str, pool: Operator, sizes: Sequence[int]) -> bool:
    """Whether an operator leads back from what a pool has left to these sizes."""
    names = [file.name(name) if name else "" for name in reader.inputs]
    read = [at for at, name in enumerate(names) if name == places]
    if reader.kind != "MaxUnpool" or read != [PLACES_AT] or _window(reader, len(sizes)) != _window(pool, len(sizes)):
        return False
    asked = names[_SHAPE_AT] if len(names) > _SHAPE_AT else ""
    shape = file.constants.get(asked)
    return not asked or (shape is not None and shape.tolist()[-len(sizes) :] == list(sizes))


def _window(operator: Operator, dims: int) -> tuple[tuple[Any, ...], ...]:
    """The lengths of a window, its steps and its pads."""
    kernel, strides = tuple(operator.attributes["kernel_shape"]), per_axis(operator, "strides", dims)
    return kernel, strides, tuple(operator.attributes.get("pads", (0,) * 2 * dims))

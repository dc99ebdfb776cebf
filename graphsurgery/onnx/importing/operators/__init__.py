"""The operators of an `.onnx` file on tensors: one torch expression for each.

Only operators and options whose meaning is certain are here; everything else is run whole by ONNX Runtime.
"""

from graphsurgery.onnx.importing.operators import (
    activations,
    attention,
    elementwise,
    movement,
    norms,
    pixels,
    products,
    reductions,
)
from graphsurgery.onnx.importing.operators.padding import per_axis, transposed_options
from graphsurgery.onnx.importing.operators.registry import (
    OPERATORS,
    SIZES_AT,
    UnlikeTorchError,
    rank,
    shape_of,
    size_of,
    tensor_of,
    torch_dtype,
)

__all__ = [
    "OPERATORS",
    "SIZES_AT",
    "UnlikeTorchError",
    "per_axis",
    "rank",
    "shape_of",
    "size_of",
    "tensor_of",
    "torch_dtype",
    "transposed_options",
]

_TABLES = (activations, attention, elementwise, movement, norms, pixels, products, reductions)

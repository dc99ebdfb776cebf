"""An `.onnx` file as such: read, stored, counted and compared, without running it."""

from graphsurgery.onnx.files.model_file import read_onnx

__all__ = [
    "read_onnx",
]

"""From a network to an `.onnx` file that computes the same, and the proof of it."""

from graphsurgery.onnx.exporting.checking import check_onnx
from graphsurgery.onnx.exporting.exporter import export_onnx

__all__ = [
    "check_onnx",
    "export_onnx",
]

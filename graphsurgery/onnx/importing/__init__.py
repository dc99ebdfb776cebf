"""From an `.onnx` file to a module that is traced like any other."""

from graphsurgery.onnx.importing.importer import Imported, import_onnx

__all__ = [
    "Imported",
    "import_onnx",
]

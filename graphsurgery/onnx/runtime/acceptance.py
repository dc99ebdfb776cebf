"""Whether ONNX Runtime would open a model, asked before anything is built on it.

A runtime finds what no reader of protobuf sees: shapes that cannot meet, missing inputs, attributes of the wrong type.
It is asked about the model without its large weights: these stand in one empty, sparse file, so that the answer takes
some milliseconds and no memory, also for a model of many gigabytes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime

from graphsurgery.errors import printable
from graphsurgery.onnx.files.storage import Weights, bare, bytes_of

_UNKNOWN = ("NOT_IMPLEMENTED", "No Op registered", "is not a registered function/op", "Failed to find kernel")
"""What it says of a valid operator that it does not have: such operators have words of their own elsewhere."""


def complaint(path: Path, model: onnx.ModelProto, weights: Weights, *, by_path: bool = False) -> str:
    """Why ONNX Runtime does not open a file; empty where it does, or only lacks an operator of it.

    Args:
        path: of the file.
        model: what it holds, without its large weights.
        weights: these; where some lie beside the file, it is opened by its path, which maps them.
        by_path: it is opened by its path in any case, as what it holds is another form of it.
    """
    if weights.outside or by_path:
        return refusal(path)
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    size = 0
    with tempfile.TemporaryDirectory() as folder:
        for tensor in asked.graph.initializer:
            if tensor.name in weights.arrays:
                bare(tensor)
                tensor.data_location = onnx.TensorProto.EXTERNAL
                length = bytes_of(tensor)
                for key, value in (("location", "weights"), ("offset", 0), ("length", length)):
                    tensor.external_data.add(key=key, value=str(value))
                size = max(size, length)
        with Path(folder, "weights").open("wb") as sparse:
            sparse.truncate(size)
        light = Path(folder, "model.onnx")
        light.write_bytes(asked.SerializeToString())
        return refusal(light)


def refusal(path: Path) -> str:
    """Why ONNX Runtime does not open a file as it stands, without optimisations; empty where it does.

    Its optimisations crash on some files in half precision.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as cause:  # ONNX Runtime's errors have no public base class
        text = str(cause).replace(str(path.parent), "")
        return "" if any(words in text for words in _UNKNOWN) else printable(text)[:200]
    return ""

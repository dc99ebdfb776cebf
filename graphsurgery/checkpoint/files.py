"""The self-describing `.pt`: a network that loads without its class and without running code from the file.

The file is a plain dictionary, written by `torch.save`:

    format      "graphsurgery"
    version     1
    graph       the JSON-like description of the network (see `description`)
    digest      sha256 of the graph as JSON
    state_dict  the parameters and buffers by name, on the CPU
    buffers     the buffers that are not part of the state_dict
    inputs      name, shape, dtype, range of the indices, and whether it has the batch, of each input
    lineage     how the network came to be, oldest record first
    metadata    whatever the caller stored with it
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphsurgery.checkpoint.atomic import write_tensors
from graphsurgery.checkpoint.building import build
from graphsurgery.checkpoint.description import describe, named_tensors
from graphsurgery.checkpoint.encoding import dtype_name, named_dtype
from graphsurgery.checkpoint.foreign import other_kind
from graphsurgery.checkpoint.rehearsal import rehearse
from graphsurgery.errors import CheckpointError, SurgeryError, one_line, require_file
from graphsurgery.graph import InputSpec, ModelGraph
from graphsurgery.network.values.shapes import is_dense

FORMAT = "graphsurgery"
VERSION = 1

_FIELDS: Mapping[str, type] = {
    "graph": dict,
    "digest": str,
    "state_dict": dict,
    "buffers": dict,
    "inputs": list,
    "lineage": list,
    "metadata": dict,
}


def save(graph: ModelGraph, path: Path | str, **metadata: Any) -> None:
    """Write a network so that `load` gives it back exactly: outputs, names, dtypes, modes, tied parameters.

    The file is written beside its place and then put there in one step: an interrupted save leaves the old file whole.

    Args:
        graph: the network, on any device; it is not modified.
        path: the file, by custom `*.pt`; its folder must exist.
        metadata: JSON-like values to store with it; `read_metadata` gives them back.

    Raises:
        SurgeryError: a layer, function or value cannot be stored (named in the message), or the file not written.
    """
    try:
        description = describe(graph.module)
        tensors = {name: _stored(tensor) for name, tensor in named_tensors(graph.module)}
        rehearse(build(description, tensors), graph.inputs)
        persistent = graph.module.state_dict().keys()
        content = {
            "format": FORMAT,
            "version": VERSION,
            "graph": description,
            "digest": _digest(description),
            "state_dict": {name: tensor for name, tensor in tensors.items() if name in persistent},
            "buffers": {name: tensor for name, tensor in tensors.items() if name not in persistent},
            "inputs": [
                {
                    "name": spec.name,
                    "shape": list(spec.shape),
                    "dtype": dtype_name(spec.dtype),
                    "range": [spec.low, spec.high],
                    "batched": spec.batched,
                }
                for spec in graph.inputs
            ],
            "lineage": [_plain(record, "lineage") for record in graph.lineage],
            "metadata": {key: _plain(value, key) for key, value in metadata.items()},
        }
    except SurgeryError as cause:
        raise SurgeryError(f"{path}: this network cannot be saved: {cause}") from cause
    write_tensors(path, content)


def load(path: Path | str) -> ModelGraph:
    """Read a network that `save` wrote, onto the CPU; nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind or of a newer version.
    """
    content = _read(path)
    try:
        tensors = {**content["state_dict"], **content["buffers"]}
        for name, tensor in tensors.items():
            _check_tensor(name, tensor)
        module = build(content["graph"], tensors)
        inputs = tuple(_input(spec) for spec in content["inputs"])
        rehearse(module, inputs)
    except SurgeryError as cause:
        raise CheckpointError(f"{path}: {cause}") from cause
    return ModelGraph(module, inputs, tuple(content["lineage"]))


def read_metadata(path: Path | str) -> dict[str, Any]:
    """What the caller of `save` stored with the network.

    Raises:
        CheckpointError: as for `load`.
    """
    metadata: dict[str, Any] = _read(path)["metadata"]
    return metadata


def read_lineage(path: Path | str) -> tuple[list[dict[str, Any]], tuple[int, ...] | None]:
    """How a network came to be, and the shape of its input without the batch; None where it has several.

    Raises:
        CheckpointError: as for `load`.
    """
    content = _read(path)
    inputs = content["inputs"]
    try:
        shape = tuple(int(size) for size in inputs[0]["shape"][1:]) if len(inputs) == 1 else None
    except (KeyError, TypeError, ValueError) as cause:
        raise CheckpointError(f"{path}: the inputs are damaged ({one_line(cause)}); save the network again") from cause
    return list(content["lineage"]), shape


def is_checkpoint(path: Path | str) -> bool:
    """Whether `save` wrote this file; False for any other, missing or damaged file."""
    try:
        content = unpickled(Path(path))
    except CheckpointError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _read(path: Path | str) -> dict[str, Any]:
    """The dictionary in the file, with the fields, version and digest that it should have."""
    content = unpickled(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: holds {_summary(content)}, expected a graphsurgery checkpoint; "
            f"weights alone need their architecture: --arch SPEC"
        )
    version = content.get("version")
    if version != VERSION:
        raise CheckpointError(
            f"{path}: is of version {version!r}, this graphsurgery reads {VERSION}; update graphsurgery"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(content.get(name), kind):
            raise CheckpointError(f"{path}: has no {name} of type {kind.__name__}; the file is damaged, save it again")
    try:
        digest = _digest(content["graph"])
    except SurgeryError as cause:
        raise CheckpointError(f"{path}: {cause}") from cause
    if digest != content["digest"]:
        raise CheckpointError(f"{path}: the graph does not have the digest it was saved with; the file was altered")
    try:
        content["lineage"] = [_record(record) for record in content["lineage"]]
        content["metadata"] = _plain(content["metadata"], "metadata")
    except (SurgeryError, RecursionError) as cause:
        raise CheckpointError(f"{path}: {one_line(cause)}; the file was altered") from cause
    return content


def _record(record: Any) -> dict[str, Any]:
    """A record of the lineage, as `save` writes it."""
    plain = _plain(record, "lineage")
    if not isinstance(plain, dict):
        raise SurgeryError(f"lineage: a record is of type {type(record).__name__}, expected a dictionary")
    for name in ("only as in evaluation", "weights that were computed"):
        if not isinstance(lines := plain.get(name, []), list) or not all(isinstance(line, str) for line in lines):
            raise SurgeryError(f"lineage: {name!r} in a record is no list of lines")
    return plain


def unpickled(path: Path) -> Any:
    """The content of a zip file of `torch.save`, read without executing anything."""
    require_file(path, "a checkpoint")
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path}: is truncated or no checkpoint at all; expected what graphsurgery saved")
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path}: is damaged (in {damaged}); take another copy of it")
        if kind := other_kind(path):
            raise CheckpointError(f"{path}: {kind}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as cause:  # the file may be anything, so anything may be wrong with it
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint ({type(cause).__name__}); "
            f"a pickled module or state_dict needs --arch SPEC or --trust-pickle"
        ) from cause


def _check_tensor(name: Any, tensor: Any) -> None:
    """Refuse what `save` does not write: its tensors are dense, on the CPU, and hold every element once."""
    plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not isinstance(name, str) or not plain or tensor.is_quantized:
        raise SurgeryError("state_dict: expected dense tensors by name only")
    if not is_dense(tensor):
        raise SurgeryError(
            f"{name}: its {tensor.numel()} elements of strides {tensor.stride()} overlap or leave gaps; the file was "
            "altered"
        )


def _input(spec: Any) -> InputSpec:
    """An input as the file states it."""
    try:
        name, shape, dtype = spec["name"], spec["shape"], spec["dtype"]
        sizes, ends, batched = tuple(shape), tuple(spec.get("range", (0, 0))), spec.get("batched", True)
    except (KeyError, TypeError, AttributeError) as cause:
        raise SurgeryError(f"the inputs are damaged ({one_line(cause)}); save the network again") from cause
    if not isinstance(name, str) or not (sizes or not batched) or not all(type(n) is int and n > 0 for n in sizes):
        raise SurgeryError(f"input {name} has the shape {shape}, expected positive integers; save the network again")
    if len(ends) != 2 or not all(type(end) is int for end in ends) or ends[0] > ends[1]:
        raise SurgeryError(f"input {name} has the range {ends}, expected two integers in order; save the network again")
    return InputSpec(name, sizes, named_dtype(dtype), *ends, batched=bool(batched))


def _summary(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary of {len(content)} entries"
    return f"an object of type {type(content).__name__}"


def _stored(tensor: Tensor) -> Tensor:
    """The values alone, on the CPU; a view is copied, so that the file holds no more than is used."""
    values = tensor.detach()
    part = not values.is_meta and values.untyped_storage().nbytes() != values.numel() * values.element_size()
    if part or not is_dense(values):
        values = values.clone()
    return values.cpu()


def _digest(description: Any) -> str:
    try:
        text = json.dumps(description, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as cause:
        raise SurgeryError(f"the graph is not JSON ({one_line(cause)}); the file was altered") from cause
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any, where: str) -> Any:
    """A JSON-like copy in plain dicts and lists."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(part, where) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, where) for part in value]
    raise SurgeryError(f"{where}: a value of type {type(value).__name__} is not JSON-like; store numbers and strings")

"""An `.onnx` file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.onnx.files.model_file import check_outside
from graphsurgery.onnx.files.storage import open_model

_CPU = ["CPUExecutionProvider"]
"""Without a fallback, which is the same again, with the error printed as it is."""
_SILENT = 4
"""Of its log: errors are raised, and the log would write names from the file to the screen as they are."""


def open_session(
    path: Path | str,
    *,
    threads: int,
    content: bytes | None = None,
    profile: Path | None = None,
    optimised: bool = True,
) -> onnxruntime.InferenceSession:
    """A file ready to run on the CPU.

    Args:
        path: the file.
        threads: how many threads one operator may use.
        content: what is run in place of the file's own bytes; the path is then only what errors call it.
        profile: the beginning of the name of a file in which every run of every operator is noted.
        optimised: False runs the operators as they stand in the file.

    Raises:
        SurgeryError: ONNX Runtime does not read it.
        CheckpointError: a weight lies outside the file's folder; see `check_outside`.
    """
    if content is None:
        _check_places(Path(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _SILENT
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        return onnxruntime.InferenceSession(content or str(path), options, providers=_CPU, enable_fallback=0)
    except Exception as cause:  # ONNX Runtime's errors have no public base class
        raise SurgeryError(f"{path}: ONNX Runtime cannot open it: {one_line(cause)}") from cause


def _check_places(path: Path) -> None:
    """Have ONNX Runtime open no file in another folder, whatever a model says."""
    try:
        model, _ = open_model(path)
    except Exception:  # ONNX Runtime will say what is wrong with the file
        return
    check_outside(path, model)


def fixed_batch(session: onnxruntime.InferenceSession) -> int | None:
    """The number of examples that a file is fixed at; None where it is free.

    Where first axes differ, as of an input beside states, or some are free, those that are fixed are no batch.
    """
    firsts = {value.shape[0] for value in session.get_inputs() if value.shape}
    first = firsts.pop() if len(firsts) == 1 else None
    return first if isinstance(first, int) else None


def run_session(
    session: onnxruntime.InferenceSession, feed: Mapping[str, Tensor], where: str, names: Sequence[str] | None = None
) -> list[Tensor]:
    """The outputs of these names, by default all, as tensors.

    Args:
        session: an open file.
        feed: the inputs by name.
        where: what an error names first.
        names: values that the file gives.

    Raises:
        SurgeryError: ONNX Runtime does not run it on these inputs.
    """
    try:
        outputs: list[Any] = session.run(names, {name: tensor.numpy() for name, tensor in feed.items()})
    except Exception as cause:  # ONNX Runtime's errors have no public base class
        raise SurgeryError(f"{where}: ONNX Runtime cannot run it: {one_line(cause)}") from cause
    return [torch.from_numpy(output) for output in outputs]

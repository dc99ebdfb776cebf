"""A disk that is full at any write: one line, the old file whole, nothing left beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from full_disk import full_at
from torch import fx, nn

from graphsurgery.checkpoint import save
from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import SurgeryError
from graphsurgery.graph import InputSpec, ModelGraph
from graphsurgery.models.supermasks import Supermask, drawn, save_supermask
from graphsurgery.onnx.files import storage
from graphsurgery.surgery.masks.mask_set import MaskSet
from graphsurgery.training.loop.run import EpochRecord, Run
from graphsurgery.training.objectives.teachers import Teachers, logits_of

MLP = "paper/mlp?hidden=400"


def checkpoint(path: Path) -> None:
    module = fx.symbolic_trace(nn.Sequential(nn.Linear(64, 64)))
    save(ModelGraph(module, (InputSpec("x", (2, 64)),)), path)


def supermask(path: Path) -> None:
    masks = MaskSet.ones(drawn(MLP, 0, (1,)))
    save_supermask(Supermask(MLP, 0, (1,), masks.shuffled(0)), path)


def masks(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    MaskSet({"a": torch.rand(300, 300, generator=generator) > 0.5}).save(path)


def state(path: Path) -> None:
    Run(path.parent).save_state(path.name.removesuffix(".state.pt"), {"a": torch.zeros(4000)})


def model_file(path: Path) -> None:
    model = onnx.ModelProto(ir_version=10)
    model.graph.initializer.append(storage.header("a", np.zeros(4000, np.float32)))
    with atomic_write(path) as temporary:
        storage.save_model(model, {"a": lambda: np.zeros(4000, np.float32)}, temporary, None)


def figure(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("<svg/>" * 2000)


WRITERS: dict[str, Callable[[Path], None]] = {
    "m.pt": checkpoint,
    "s.pt": supermask,
    "m.json": masks,
    "train.state.pt": state,
    "m.onnx": model_file,
    "f.svg": figure,
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_old_file_stays_whole_wherever_the_disk_is_full(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    whole = path.read_bytes()
    for size in sorted({0, 1, 64, len(whole) // 3, len(whole) // 2, len(whole) - 1}):
        with (
            pytest.raises(SurgeryError, match=r"cannot be written \(File too large\); the old file") as caught,
            full_at(size),
        ):
            WRITERS[name](path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == whole
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("call", [1, 2])
def test_a_disk_that_is_full_when_it_is_flushed(tmp_path, monkeypatch, name, call):
    path = tmp_path / name
    WRITERS[name](path)
    whole, calls, flush = path.read_bytes(), iter(range(1, 9)), os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(28, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SurgeryError, match=r"cannot be written \(No space left on device\)"):
        WRITERS[name](path)
    # The second flush is of the folder, behind the new file, which is as whole as the old one.
    assert call == 2 or path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_keep_whole_lines(tmp_path):
    run = Run(tmp_path)
    record = EpochRecord("train", 1, {"total": 1.0})
    run.log(record)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(SurgeryError, match=r"metrics\.jsonl: cannot be written"), full_at(len(whole) + 9):
        run.log(record)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_logits_of_teachers_take_their_space_at_once(tmp_path):
    data = torch.utils.data.TensorDataset(torch.zeros(900, 4))
    with pytest.raises(SurgeryError, match=r"logits-\w+\.npy: cannot be written \(File too large\)"), full_at(4096):
        logits_of(Teachers([nn.Linear(4, 3)]), data, tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []

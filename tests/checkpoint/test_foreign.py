"""Weights of other programs' files."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from graphsurgery.checkpoint import load
from graphsurgery.checkpoint.foreign import read_weights
from graphsurgery.errors import CheckpointError

WEIGHTS = {"conv.weight": torch.arange(4.0), "conv.steps": torch.tensor(3)}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3},
        {"model": {"model_state_dict": WEIGHTS}, "optimizer": {"state": {}}},
        {f"module.{name}": tensor for name, tensor in WEIGHTS.items()},
        {"model": {f"module._orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()}},
    ],
    ids=["bare", "state_dict", "model", "data parallel", "compiled"],
)
def test_state_dicts_are_unwrapped(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    torch.testing.assert_close(read_weights(tmp_path / "w.pt"), WEIGHTS, rtol=0, atol=0)


def test_a_pickled_module_needs_trust(tmp_path):
    torch.save({"model": nn.Linear(2, 3), "epoch": 1}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"holds pickled objects \(.*Linear\).*--arch SPEC.*--trust-pickle"):
        read_weights(tmp_path / "w.pt")
    assert isinstance(read_weights(tmp_path / "w.pt", trust_pickle=True), nn.Linear)


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))], ids=["zip", "bare"])
def test_nothing_is_executed_without_trust(tmp_path, write):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (f"open({str(tmp_path / 'executed')!r}, 'w').close()",)

    write({"state_dict": Evil()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: ") as caught:
        read_weights(tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_files_without_weights_are_refused(tmp_path):
    path = tmp_path / "w.pt"
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(path)
    for data in (b"", b"<html>", b"PK\x03\x04half"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
            read_weights(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="holds dict without tensors, expected a state_dict"):
        read_weights(path)


def scripted(module, path):
    torch.jit.script(module).save(path)


def exported(module, path):
    torch.export.save(torch.export.export(module, (torch.randn(2, 4),)), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("write", "kind"), [(scripted, "a TorchScript archive"), (exported, "a program of torch.export")]
)
@pytest.mark.parametrize("name", ["m.pt", "m.pt2"])
@pytest.mark.parametrize("read", [read_weights, load])
def test_programs_are_called_what_they_are_and_the_advice_works(write, kind, name, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    write(module, Path(name))
    with pytest.raises(CheckpointError, match=rf"^{name}: is {kind}, .* give --arch SPEC") as caught:
        read(Path(name))
    advice = re.search(r"torch\.save\(.*'weights\.pt'\)", str(caught.value))
    exec(advice[0], {"torch": torch})
    torch.testing.assert_close(read_weights("weights.pt"), dict(module.state_dict()), rtol=0, atol=0)

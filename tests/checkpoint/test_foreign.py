"""Weights of other programs' files."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from graphsurgery.checkpoint.foreign import read_contents
from graphsurgery.errors import CheckpointError

WEIGHTS = {"conv.weight": torch.arange(4.0), "conv.steps": torch.tensor(3)}


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (WEIGHTS, ""),
        ({"state_dict": WEIGHTS, "epoch": 3, 7: WEIGHTS}, "state_dict"),
        ({"model": {"model_state_dict": WEIGHTS}, "optimizer": {"state": {0: WEIGHTS}}}, "model.model_state_dict"),
    ],
    ids=["bare", "state_dict", "model"],
)
def test_tensors_are_found_by_their_paths(tmp_path, content, path):
    torch.save(content, tmp_path / "w.pt")
    found = read_contents(tmp_path / "w.pt")
    assert found.sets == (path,)
    expected = {f"{path}.{name}".lstrip("."): tensor for name, tensor in WEIGHTS.items()}
    torch.testing.assert_close(found.tensors, expected, rtol=0, atol=0)


def test_a_file_may_nest_without_end(tmp_path):
    content = {"w": torch.zeros(2)}
    content["again"] = content
    torch.save(content, tmp_path / "w.pt")
    assert 1 < len(read_contents(tmp_path / "w.pt").sets) < 20


def test_a_pickled_module_needs_trust(tmp_path):
    torch.save({"model": nn.Linear(2, 3), "epoch": 1}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"holds pickled objects \(.*Linear\).*--arch SPEC.*--trust-pickle"):
        read_contents(tmp_path / "w.pt")
    found = read_contents(tmp_path / "w.pt", trust_pickle=True).modules
    assert list(found) == ["model"]
    assert isinstance(found["model"], nn.Linear)


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))], ids=["zip", "bare"])
def test_nothing_is_executed_without_trust(tmp_path, write):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (f"open({str(tmp_path / 'executed')!r}, 'w').close()",)

    write({"state_dict": Evil()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: ") as caught:
        read_contents(tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_files_without_weights_are_refused(tmp_path):
    path = tmp_path / "w.pt"
    with pytest.raises(CheckpointError, match="no such file"):
        read_contents(path)
    for data in (b"", b"<html>", b"PK\x03\x04half"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
            read_contents(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="holds dict without tensors, expected a state_dict"):
        read_contents(path)

"""Weights of other programs' files."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from graphsurgery.checkpoint import load
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def safe(path, tensors, **changes):
    """A file as safetensors writes it."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    kinds = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}
    for name, tensor in tensors.items():
        values = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else tensor.numpy().tobytes()
        offsets = [len(data), len(data) + len(values)]
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets} | changes
        data += values
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


TENSORS = {
    **WEIGHTS,
    "half": torch.arange(6).bfloat16().reshape(2, 3),
    "flags": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
}


def test_safetensors_are_read(tmp_path):
    safe(tmp_path / "w.safetensors", TENSORS)
    torch.testing.assert_close(dict(read_contents(tmp_path / "w.safetensors").tensors), TENSORS, rtol=0, atol=0)
    whole = (tmp_path / "w.safetensors").read_bytes()
    library = pytest.importorskip("safetensors.torch")
    torch.testing.assert_close(library.load(whole), TENSORS, rtol=0, atol=0)
    for damaged in (b"", whole[:5], whole[:-1], whole[:40], b"\xff" * 8 + whole[8:]):
        (tmp_path / "w.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"w\.safetensors: is no safetensors file, or is damaged"):
            read_contents(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [-1, -4]},
        {"shape": [3]},
        {"dtype": "F8"},
        {"data_offsets": [-4, 12]},
        {"data_offsets": [0, 999]},
        {"shape": "x"},
    ],
)
def test_safetensors_that_say_something_else_are_refused(changes, tmp_path):
    safe(tmp_path / "w.safetensors", {"w": torch.arange(4.0)}, **changes)
    with pytest.raises(CheckpointError, match="is no safetensors file, or is damaged"):
        read_contents(tmp_path / "w.safetensors")


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


def scripted(module, path):
    torch.jit.script(module).save(path)


def exported(module, path):
    torch.export.save(torch.export.export(module, (torch.randn(2, 4),)), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("write", "kind"), [(scripted, "a TorchScript archive"), (exported, "a program of torch.export")]
)
@pytest.mark.parametrize("name", ["m.pt", "m.pt2"])
@pytest.mark.parametrize("read", [read_contents, load])
def test_programs_are_called_what_they_are_and_the_advice_works(write, kind, name, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    write(module, Path(name))
    with pytest.raises(CheckpointError, match=rf"^{name}: is {kind}, .* give --arch SPEC") as caught:
        read(Path(name))
    advice = re.search(r"torch\.save\(.*'weights\.pt'\)", str(caught.value))
    exec(advice[0], {"torch": torch})
    torch.testing.assert_close(dict(read_contents("weights.pt").tensors), dict(module.state_dict()), rtol=0, atol=0)

"""`compress hf:FOLDER -o OUT`: a folder from a folder, with the lines, the JSON and the refusals of other commands."""

import json

import pytest
import stand_in_transformers
import torch
from stand_in_transformers import Config, TinyModel

import graphsurgery as gs
from graphsurgery.cli import run, streaming


@pytest.fixture
def folder(monkeypatch, tmp_path):
    stand_in_transformers.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    TinyModel(Config(hidden_size=16, num_heads=4, layers=2)).save_pretrained(tmp_path / "big")
    return tmp_path


def test_a_folder_from_a_folder(folder, capsys):
    report = ["--report", "small.html"]
    assert run(["compress", "hf:big", "--keep", "0.5", "-o", "small-0.5", *report, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"] == {"hidden_size": 8, "num_heads": 2, "inner": 5}
    assert told["files"]["network"] == "small-0.5"
    assert (told["streamed"]["files"], told["resumed"], list(told["shards"])) == (1, 0, ["model.safetensors"])
    assert told["after"]["parameters"] < told["before"]["parameters"]
    assert "nothing was run" in (folder / "small.html").read_text(encoding="utf-8")
    x = (graph := gs.open_model("hf:small-0.5")).example_inputs(3)
    expected = gs.compress(gs.open_model("hf:big"), 0.5)
    torch.testing.assert_close(graph(*x)["logits"], expected(*x)["logits"], rtol=0, atol=0)
    assert run(["compress", "hf:big", "--keep", "0.25", "-o", "small-0.5"]) == 2
    assert "exists; give another name" in capsys.readouterr().err
    assert run(["compress", "hf:big", "--keep", "0.25", "-o", "small-0.5", "--overwrite"]) == 0
    assert TinyModel.from_pretrained(folder / "small-0.5").config.hidden_size == 4


def test_a_dry_run_writes_nothing(folder, capsys):
    assert run(["compress", "hf:big", "--keep", "0.5", "-o", "small", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "would write small" in shown
    assert "TinyModel with this configuration is the cut network" in shown
    assert "graphsurgery compress hf:big --keep 0.5 -o small" in shown
    assert sorted(path.name for path in folder.iterdir()) == ["big"]


def test_a_checkpoint_where_memory_is_short(folder, capsys, monkeypatch):
    monkeypatch.setattr(streaming, "free_memory", lambda: 12_000)
    assert run(["compress", "hf:big", "--keep", "0.5", "-o", "small.pt"]) == 0
    assert "which are read one by one" in capsys.readouterr().out
    expected = gs.compress(gs.open_model("hf:big"), 0.5)
    assert all(torch.equal(t, expected.tensors()[name]) for name, t in gs.load("small.pt").tensors().items())
    assert run(["compress", "hf:big", "--keep", "0.5", "-o", "again.pt", "--dry-run"]) == 0
    monkeypatch.setattr(streaming, "free_memory", lambda: 1000)
    assert run(["compress", "hf:big", "--keep", "0.5", "-o", "again.pt"]) == 2
    assert "a folder (-o again) is written in shards" in capsys.readouterr().err
    assert not (folder / "again.pt").exists()


def test_what_fits_is_opened_whole(folder, capsys):
    assert run(["compress", "hf:big", "--keep", "0.5", "-o", "small.pt"]) == 0
    assert "read one by one" not in capsys.readouterr().out
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["-o", "small", "--data", "digits"], "so --data has no place here; leave it out and fine-tune the result"),
        (["-o", "small", "--onnx", "small.onnx"], "so --onnx has no place here"),
        (["-o", "small", "--dead"], "so --dead has no place here"),
        (["-o", "small", "--lr", "0.1"], "so fine-tuning has no place here"),
        (["-o", "small", "--round-to", "auto"], "so --round-to auto has no place here"),
        (["-o", "small", "--answer", "logits"], "so --arch, --key, --answer or --input has no place here"),
        (["-o", "small", "--importance", "taylor"], "importance taylor needs gradients of the whole network"),
        (["-o", "small"], "nothing says what to keep"),
        (["-o", "big", "--keep", "0.5", "--overwrite"], "big: is read by this command"),
        (["-o", "no/small", "--keep", "0.5"], "no/small: its folder does not exist; make no first"),
        (["-o", "letter", "--keep", "0.5", "--overwrite"], "letter: is a file, expected the name of a folder"),
    ],
)  # fmt: skip
def test_what_has_no_place(folder, capsys, tokens, message):
    (folder / "letter").write_text("dear", encoding="utf-8")
    assert run(["compress", "hf:big", *tokens]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["big", "letter"]


def test_random_weights_are_in_no_folder(folder, capsys):  # noqa: ARG001
    assert run(["compress", "hf:TinyModel", "--keep", "0.5", "-o", "small"]) == 2
    assert "hf:TinyModel: is no folder of Hugging Face (hf:FOLDER)" in capsys.readouterr().err


def test_the_free_memory_is_known_or_not(monkeypatch):
    assert streaming.free_memory() is None or streaming.free_memory() > 10**6

    def refused(*_, **__):
        raise OSError

    monkeypatch.setattr(streaming.Path, "read_text", refused)
    assert streaming.free_memory() is None

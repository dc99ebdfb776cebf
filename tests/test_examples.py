"""Every file of examples/ runs as it stands, and does what its first line says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import onnx
import pytest
import stand_in_transformers
import torch
from accelerate import Accelerator
from stand_in_transformers import Config, TokenModel
from two_processes import FSDP, in_two, shard_on_cpu

import graphsurgery as gs
from graphsurgery.models.libraries.streaming import open_stored
from graphsurgery.recipes.compression.shrink import Cut
from graphsurgery.recipes.compression.streamed import compress_folder

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example in a folder of its own; what it printed."""

    def run(name):
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def accuracies(printed):
    """Percent of the test images, by network."""
    return {name.strip(): float(found) for name, found in re.findall(r"^(.*?):? +([\d.]+)% of the", printed, re.M)}


def test_merge_two(run):
    found = accuracies(run("merge_two"))
    assert {"parent 1", "parent 2", "merged", "control: distilled"} <= set(found)
    assert found["merged"] > 60
    assert gs.cost(gs.load("merged.pt")).parameters == 1009


def test_compress_onnx(run):
    before, after = (int(count.replace(",", "")) for count in re.findall(r"([\d,]+) (?:mul|are)", run("compress_onnx")))
    assert 0.2 < after / before < 0.3
    assert Path("small.onnx").stat().st_size < 0.5 * Path("model.onnx").stat().st_size


def test_widen_and_deepen(run):
    assert run("widen_and_deepen").count("outputs moved by") == 2
    assert any("_deeper2" in name for name, _ in gs.load("deep.pt").module.named_modules())


def test_distil(run):
    found = accuracies(run("distil"))
    assert {"teacher", "student on labels", "mimic"} <= set(found)
    assert found["mimic"] > 60
    assert gs.cost(gs.load("student.pt")).parameters == 1009


def test_every_width(run):
    found = accuracies(run("every_width"))
    assert found["width 100%"] > 60
    whole, half = (len(onnx.load(f"width-{width}.onnx").SerializeToString()) for width in (1.0, 0.5))
    assert half < whole


def test_fine_tune_sharded(tmp_path, monkeypatch):
    fine_tune = runpy.run_path(str(EXAMPLES / "fine_tune_sharded.py"))["fine_tune"]
    stand_in_transformers.install(monkeypatch)
    torch.manual_seed(0)
    TokenModel(Config(hidden_size=16, num_heads=4, layers=2)).save_pretrained(tmp_path / "big")
    compress_folder(open_stored(f"hf:{tmp_path / 'big'}"), Cut(keep=0.5), tmp_path / "small")
    tokens = torch.randint(0, 31, (24, 6), generator=torch.Generator().manual_seed(1))

    def work(rank):
        shard_on_cpu()
        accelerator = Accelerator(cpu=True)
        model = fine_tune(accelerator, TokenModel.from_pretrained(tmp_path / "small"), tokens, rows=2, lr=1e-2)
        parts = {name: tuple(parameter.to_local().shape) for name, parameter in model.named_parameters()}
        assert parts["layers.0.up.weight"][0] in (2, 3), "half of the five rows"
        state = accelerator.get_state_dict(model)
        if rank == 0:
            torch.save(state, tmp_path / "tuned.pt")

    in_two(work, **FSDP, FSDP_TRANSFORMER_CLS_TO_WRAP="TinyLayer")
    alone = fine_tune(Accelerator(cpu=True), TokenModel.from_pretrained(tmp_path / "small"), tokens, rows=4, lr=1e-2)
    before = TokenModel.from_pretrained(tmp_path / "small").state_dict()
    tuned = torch.load(tmp_path / "tuned.pt")
    found = {name: (tuned[name], tensor) for name, tensor in alone.state_dict().items()}
    for name in found.keys() - {"layers.0.qkv.bias", "layers.1.qkv.bias"}:  # softmax ignores a bias of all keys
        torch.testing.assert_close(*found[name], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(tuned["head.weight"], before["head.weight"], atol=1e-3)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
    assert f"test_{path.stem}" in globals()

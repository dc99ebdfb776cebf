"""What images become is said on each use, kept with the network, and found again."""

import json

import numpy as np
import pytest
from PIL import Image

import graphsurgery as gs
from graphsurgery.cli import run

NET = """
from torch import nn
INPUT_SHAPE = (3, 16, 16)
def net():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
"""
QUICK = ["--epochs", "1", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images of two classes, and own.pt, a network trained on them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels, "RGB").save(tmp_path / "images" / label / f"{number}.png")
    data = "imagefolder:images?mean=0.5&std=0.25&augment=none"
    assert run(["train", "net.py:net", "--data", data, "-o", "own.pt", *QUICK, "--quiet"]) == 0
    return tmp_path


def used(capsys, *tokens):
    """What a command made of its images, by the data."""
    capsys.readouterr()
    assert run([*tokens, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["preprocessing"]


def test_the_checkpoint_knows(folder, capsys):
    record = gs.load(folder / "own.pt").lineage[-1]["preprocessing"]
    assert (record["height"], record["mean"], record["std"]) == (16, [0.5], [0.25])
    compress = ["compress", "own.pt", "--keep", "0.5", "-o", "s.pt", "--device", "cpu"]
    for option, data in (("--data", "imagefolder:images"), ("--calib", "images")):
        made = used(capsys, *compress, option, data, "--epochs", "0", "--overwrite")[data]
        assert (made["height"], made["mean"], made["std"], made["source"]) == (16, [0.5], [0.25], "own.pt")
    assert used(capsys, "slim", "s.pt", "--data", "imagefolder:images", *QUICK, "-o", "u.pt", "--dry-run")
    assert run([*compress, "--data", "imagefolder:images?size=16&mean=0.1", "--overwrite"]) == 0
    shown = capsys.readouterr().out.splitlines()
    images = [line for line in shown if line.startswith("images")]
    assert len(images) == 1
    assert "16x16" in images[0]
    assert "mean 0.1, deviation 0.25; says the data spec (resize, crop, std from own.pt)" in images[0]


def test_an_exported_file_knows_too(folder, capsys):
    assert run(["export", "own.pt", "-o", "own.onnx", "--quiet"]) == 0
    command = ["compress", "own.onnx", "--keep", "0.5", "--calib", "images", *QUICK, "-o", "s.pt"]
    made = used(capsys, *command)["images"]
    assert (made["mean"], made["std"], made["source"]) == ([0.5], [0.25], "own.onnx")
    assert used(capsys, "compress", "s.pt", "--keep", "0.5", "--calib", "images", *QUICK, "-o", "t.pt")["images"][
        "mean"
    ] == [0.5]
    assert (folder / "t.pt").exists()


@pytest.mark.usefixtures("folder")
def test_merged_parents_hand_it_on(capsys):
    data = "imagefolder:images"
    command = ["merge", "own.pt", "own.pt", "--data", data, "--wide-epochs", "1", "--no-control", *QUICK]
    assert run([*command, "-o", "m.pt", "--json"]) in (0, 1)  # gates of one epoch on noise need not close
    assert json.loads(capsys.readouterr().out)["preprocessing"][data]["mean"] == [0.5]
    assert used(capsys, "export", "m.pt", "--data", data, "-o", "m.onnx")[data]["mean"] == [0.5]


@pytest.mark.usefixtures("folder")
def test_an_input_beside_data_of_another_shape_is_refused(capsys):
    data = "imagefolder:images?size=24"
    command = ["compress", "own.pt", "--keep", "0.5", "--data", data, "--input", "3x16x16", "-o", "s.pt"]
    assert run(command) == 2
    assert capsys.readouterr().err == (
        "error  --input 3x16x16: imagefolder:images?size=24 has inputs of 3x24x24; leave --input out, or "
        "imagefolder:images?size=HEIGHTxWIDTH\n"
    )
    assert run(["compress", "own.pt", "--keep", "0.5", "--data", "digits", "--input", "1x9x9", "-o", "s.pt"]) == 2
    assert "digits has inputs of 1x8x8" in capsys.readouterr().err

"""Mimic and factorize on the command line."""

import json

import numpy as np
import pytest

import graphsurgery as gs
from graphsurgery.cli import run

STUDENT = "paper/lenet_300_100?in_features=64"
COMMON = ["--student", STUDENT, "--data", "digits", "--epochs", "1", "--device", "cpu"]


@pytest.mark.usefixtures("here")
def test_mimic_of_a_checkpoint_and_an_onnx_file(capsys, here):
    assert run(["export", "a.pt", "-o", "a.onnx", "--quiet"]) == 0
    capsys.readouterr()
    command = ["mimic", "--teacher", "a.onnx", "b.pt", *COMMON, "-o", "s.pt"]
    assert run([*command, "--dry-run"]) == 0
    assert "would train 1 epochs on the answers of 2 teachers" in capsys.readouterr().out
    assert run([*command, "--bottleneck", "8", "--cache", "answers", "--report", "s.html"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("a.onnx", "ensemble", "student on labels", "bottleneck", "verdict"))
    assert gs.load("s.pt").lineage[-1]["teachers"] == ["a.onnx", "b.pt"]
    assert len(list((here / "answers").glob("*.npy"))) == 1
    assert (here / "s.html").stat().st_size > 10_000


@pytest.mark.usefixtures("here")
def test_the_student_is_fitted_to_the_data():
    command = ["mimic", "--teacher", "a.pt", "--student", "paper/mlp?hidden=20", "--data", "digits", "--epochs", "1"]
    assert run([*command, "--no-control", "--device", "cpu", "--quiet", "-o", "s.pt"]) == 0
    shapes = {name: tuple(tensor.shape) for name, tensor in gs.load("s.pt").tensors().items()}
    assert shapes["hidden.weight"] == (20, 64)
    assert shapes["head.weight"] == (10, 20)


@pytest.mark.usefixtures("here")
def test_factorize_and_back(capsys):
    assert run(["factorize", "a.pt", "--rank", "0.4", "-o", "f.pt", "--dry-run"]) == 0
    assert "full rank" in capsys.readouterr().out
    assert run(["factorize", "a.pt", "--energy", "0.6", "-o", "f.pt", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["after"]["parameters"] < document["before"]["parameters"]
    assert run(["factorize", "f.pt", "--back", "-o", "g.pt"]) == 0
    assert set(gs.load("g.pt").tensors()) == set(gs.load("a.pt").tensors())


@pytest.mark.usefixtures("here")
def test_compress_and_merge_recover_without_labels(capsys):
    command = ["compress", "a.pt", "--keep", "0.7", "--data", "digits", "--epochs", "1", "--device", "cpu"]
    assert run([*command, "--recover", "mimic", "-o", "c.pt"]) == 0
    assert "on what the original says" in capsys.readouterr().out
    command = ["merge", "a.pt", "b.pt", "--data", "digits", "--labels", "0", "--no-control", "--device", "cpu"]
    assert run([*command, "-o", "m.pt"]) == 0
    assert "fine-tuned on what the parents say, of mixtures of examples" in " ".join(capsys.readouterr().out.split())


BAD = {
    "no rank": (["factorize", "a.pt", "-o", "f.pt"], "give one of rank, energy and target"),
    "unknown layer": (["factorize", "a.pt", "--layer", "fc9", "--rank", "2", "-o", "f.pt"], "fc9 is not a layer"),
    "not factorized": (["factorize", "a.pt", "--back", "-o", "f.pt"], "no layer of this network is factorized"),
    "other classes": (["mimic", "--teacher", "paper/cnn?classes=4", *COMMON, "-o", "s.pt"], "has 10 classes"),
    "other shape": (["mimic", "--teacher", "paper/lenet5", *COMMON, "-o", "s.pt"], "paper/lenet5: "),
    "no file": (["mimic", "--teacher", "z.onnx", *COMMON, "-o", "s.pt"], "z.onnx"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_fail_with_one_line(case, fails):
    tokens, message = BAD[case]
    code, line = fails(*tokens)
    assert code == 2
    assert message in line


@pytest.mark.usefixtures("here")
def test_mimic_of_all_outputs_without_labels(here, capsys, fails):
    np.save(here / "calib.npy", np.random.default_rng(0).normal(size=(12, 1, 8, 8)))
    (here / "calib").mkdir()
    (here / "calib.npy").rename(here / "calib" / "a.npy")
    assert run(["export", "a.pt", "-o", "a.onnx", "--quiet"]) == 0
    command = ["mimic", "--teacher", "a.onnx", "b.pt", "--student", "b.pt", "--epochs", "1", "--device", "cpu"]
    assert run([*command, "--calib", "calib", "-o", "s.pt", "--dry-run"]) == 0
    assert "would train 1 epochs on all outputs of 2 teachers" in capsys.readouterr().out
    assert run([*command, "--calib", "calib", "-o", "s.pt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["outcome"]["rows"]] == ["a.onnx", "b.pt", "student", "mimic"]
    assert gs.load("s.pt").lineage[-1]["data"] == "calib"
    assert fails(*command, "-o", "t.pt") == (2, "mimic: give --data with labels, or --calib without")
    message = "mimic: --transfer and --cache are of logits; leave them out beside --calib"
    assert fails(*command, "--calib", "calib", "--cache", "c", "-o", "t.pt") == (2, message)

"""Networks with several outputs on the command line."""

import numpy as np
import pytest
import torch

import graphsurgery as gs
from graphsurgery.cli import run

TRAINING = ["--data", "digits", "--epochs", "1", "--device", "cpu", "--quiet"]
NETS = """
from torch import nn

INPUT_SHAPE = (1, 8, 8)

class Net(nn.Module):
    def __init__(self, several):
        super().__init__()
        self.several = several
        self.body, self.head, self.other = nn.Linear(64, 12), nn.Linear(12, 10), nn.Linear(12, 10)

    def forward(self, x):
        hidden = self.body(x.flatten(1)).relu()
        other = {"other": self.other(hidden)} if self.several else {}
        return {**other, "logits": self.head(hidden)}

def several():
    return Net(True)

def one():
    return Net(False)
"""


@pytest.fixture
def nets(here):
    (here / "several.py").write_text(NETS)
    return here


def _images(folder):
    """Images that nobody has labelled, as arrays."""
    (folder / "calib").mkdir()
    images = np.random.default_rng(0).standard_normal((64, 1, 8, 8), np.float32)
    np.save(folder / "calib" / "images.npy", images)


def _several():
    from graphsurgery.models import build

    torch.manual_seed(0)
    return build("several.py:several")


def test_what_is_one_tensor_is_taken(nets):
    assert run(["train", "several.py:one", *TRAINING, "-o", "one.pt"]) == 0
    assert list(gs.load(nets / "one.pt")(torch.zeros(2, 1, 8, 8))) == ["logits"]
    assert run(["compress", "one.pt", "--keep", "0.5", *TRAINING, "-o", "small.pt"]) == 0
    assert list(gs.load(nets / "small.pt")(torch.zeros(2, 1, 8, 8))) == ["logits"]
    _images(nets)
    unlabelled = ["--calib", "calib", "--epochs", "1", "--device", "cpu", "--quiet"]
    assert run(["compress", "one.pt", "--keep", "0.5", *unlabelled, "-o", "calibrated.pt"]) == 0
    assert run(["mimic", "--teacher", "one.pt", "--student", "paper/mlp?hidden=8", *TRAINING, "-o", "student.pt"]) == 0


def test_of_several_the_answer_says_which(nets, capsys):
    call = ["train", "several.py:several", *TRAINING, "-o", "m.pt"]
    assert run(call) == 2
    assert capsys.readouterr().err == (
        "error  several.py:several: gives several outputs (other [2, 10], logits [2, 10]), expected one; "
        "choose it with --answer NAME\n"
    )
    assert run([*call, "--answer", "logits"]) == 0
    graph = gs.load(nets / "m.pt")
    assert graph(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert "other.weight" not in graph.tensors()
    gs.save(gs.trace(_several(), torch.zeros(2, 1, 8, 8)), nets / "several.pt")
    _images(nets)
    unlabelled = ["--calib", "calib", "--epochs", "1", "--device", "cpu", "--quiet"]
    call = ["compress", "several.pt", "--keep", "0.5", *unlabelled, "-o", "small.pt"]
    assert run(call) == 0  # each output is learnt
    assert set(gs.load(nets / "small.pt").tensors()) >= {"other.weight", "head.weight"}
    assert run([*call, "--answer", "logits", "--overwrite"]) == 0
    assert "other.weight" not in gs.load(nets / "small.pt").tensors()
    assert run(["export", "several.py:several", "--answer", "other", "-o", "m.onnx"]) == 0
    assert run(["inspect", "several.py:several", "--answer", "logit"]) == 2
    assert "has no output logit; it gives other, logits; did you mean logits?" in capsys.readouterr().err


def test_where_an_answer_cannot_be_chosen_it_is_said(nets, fails):
    tickets = ["lottery", "several.py:several", "--data", "digits", "--answer", "logits", "-o", "tickets"]
    assert fails(*tickets) == (
        2,
        "--answer: tickets of a spec are drawn again and again; give it an output of its own",
    )
    gs.export_onnx(gs.trace(_several().eval(), torch.zeros(2, 1, 8, 8)), nets / "several.onnx")
    code, message = fails("inspect", "several.onnx", "--answer", "logits")
    assert (code, message) == (
        2,
        "--answer: edits of several.onnx go back into it, with all of its outputs; leave it out",
    )

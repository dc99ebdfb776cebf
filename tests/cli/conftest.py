import math
import shutil

import pytest

import graphsurgery as gs
from graphsurgery.cli import run
from graphsurgery.cli.process import watching
from graphsurgery.passes.compress import compress
from graphsurgery.training.loop import progress

SPEC = "paper/cnn?width=3"
NETS = """
import torch
from torch import nn

INPUT_SHAPE = (1, 8, 8)

def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(64, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x.flatten(1))))

def other():
    return Other()

class Undecided(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

def undecided():
    return Undecided()

def groups():
    return nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=3), nn.Flatten(), nn.Linear(432, 10))
"""


@pytest.fixture(autouse=True)
def no_lines_now_and_then(monkeypatch):
    """However slow the machine is, nothing is printed because ten seconds have gone."""
    monkeypatch.setattr(watching, "EVERY", math.inf)
    monkeypatch.setattr(progress, "EVERY", math.inf)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with the briefly trained parents a.pt and b.pt, other.pt of another topology, and nets.py."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "nets.py").write_text(NETS)
    common = ["--epochs", "1", "--device", "cpu", "--quiet"]
    assert run(["train", SPEC, "--data", "digits", "-o", str(folder / "a.pt"), *common]) == 0
    assert run(["train", SPEC, "--data", "digits", "-o", str(folder / "b.pt"), "--seed", "1", *common]) == 0
    spec = f"{folder / 'nets.py'}:other"
    assert run(["train", spec, "--data", "digits", "-o", str(folder / "other.pt"), *common]) == 0
    return folder


@pytest.fixture(scope="session")
def files(trained, tmp_path_factory):
    """A folder with a.onnx, which is a.pt, and small.onnx, which has half of its channels."""
    folder = tmp_path_factory.mktemp("exported")
    graph = gs.load(trained / "a.pt")
    gs.export_onnx(graph, folder / "a.onnx")
    gs.export_onnx(compress(graph, 0.5), folder / "small.onnx")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """The current folder is empty, but for links to the trained parents and nets.py."""
    for file in trained.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def file(here, files):
    """The current folder has a.onnx too."""
    return shutil.copy(files / "a.onnx", here / "a.onnx")


@pytest.fixture
def fails(here, capsys):
    """Run a command that must fail: its exit code and its one line; nothing may be written."""

    def failing(*tokens):
        before = sorted(path.name for path in here.iterdir())
        capsys.readouterr()
        code = run(list(tokens))
        streams = capsys.readouterr()
        assert "Traceback" not in streams.err
        lines = streams.err.splitlines()
        assert len(lines) == 1, streams.err
        assert lines[0].startswith("error  ")
        assert sorted(path.name for path in here.iterdir()) == before
        return code, lines[0].removeprefix("error  ")

    return failing

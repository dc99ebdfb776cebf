"""Runs are kept without being asked for, go on after an interruption, and give their options back."""

import gc
import json
import os
import shlex
import signal
from pathlib import Path

import numpy
import pytest
import torch

import graphsurgery as gs
from graphsurgery.cli import main, run
from graphsurgery.cli.running import call_of, with_config
from graphsurgery.errors import SurgeryError
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.training.loop.progress import LogReporter

SPEC = "paper/cnn?width=3"
TRAIN = ["train", SPEC, "--data", "digits", "--device", "cpu"]


class Stopping(LogReporter):
    """Interrupts after so many epochs."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def epoch_finished(self, record):
        super().epoch_finished(record)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.fixture
def stopped(monkeypatch):
    """A command that is interrupted after so many epochs."""

    def stopping(after, *tokens):
        with monkeypatch.context() as patch:
            patch.setattr("graphsurgery.training.loop.progress.default_reporter", lambda **_: Stopping(after))
            assert run(list(tokens)) == 130

    return stopping


def weights(name):
    return gs.load(name).module.state_dict()


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in other)


def test_an_interrupted_training_goes_on(here, stopped, capsys):
    assert run([*TRAIN, "--epochs", "4", "-o", "whole.pt", "--quiet"]) == 0
    stopped(2, *TRAIN, "--epochs", "4", "-o", "x.pt")
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error  interrupted; nothing was left half written; go on with: graphsurgery train")
    assert not (here / "x.pt").exists()
    command = shlex.split(line.partition("go on with: graphsurgery ")[2])
    assert command[-1] == "--resume"
    assert run(command) == 0
    assert "resumes    runs/train-0002: train from epoch 3" in capsys.readouterr().out
    assert same(weights("x.pt"), weights("whole.pt"))


@pytest.mark.parametrize("command", ["merge", "grow", "mimic", "slim", "compress", "supermask"])
@pytest.mark.usefixtures("here")
def test_every_command_that_trains_goes_on(stopped, capsys, command):
    tokens = {
        "merge": ["merge", "a.pt", "b.pt", "--data", "digits", "--wide-epochs", "2", "--epochs", "2", "--no-control"],
        "grow": ["grow", "a.pt", "--by", "2x", "--data", "digits", "--epochs", "2", "--no-control"],
        "mimic": [
            *["mimic", "--teacher", "a.pt", "--student", "paper/mlp", "--data", "digits", "--epochs", "2"],
            "--no-control",
        ],
        "slim": ["slim", "a.pt", "--data", "digits", "--epochs", "2"],
        "compress": ["compress", "a.pt", "--keep", "0.5", "--data", "digits", "--epochs", "2"],
        "supermask": ["supermask", SPEC, "--data", "digits", "--epochs", "2"],
    }[command]
    tokens = [*tokens, "--device", "cpu"]
    stopped(1, *tokens, "-o", "x.pt")
    capsys.readouterr()
    assert run([*tokens, "-o", "x.pt", "--resume", "--json"]) in (0, 1)  # gates of two epochs need not close
    assert json.loads(capsys.readouterr().out)["run"] == f"runs/{command}-0001"
    assert Path("x.pt").exists()
    assert [folder.name for folder in Path("runs").iterdir()] == [f"{command}-0001"]


@pytest.mark.usefixtures("here")
def test_a_run_is_extended_by_more_epochs(capsys):
    constant = [*TRAIN, "--schedule", "constant"]
    assert run([*constant, "--epochs", "2", "-o", "two.pt", "--quiet"]) == 0
    assert run([*constant, "--epochs", "4", "-o", "four.pt", "--resume"]) == 0
    assert "runs/train-0001: train from epoch 3" in capsys.readouterr().out
    assert run([*constant, "--epochs", "4", "-o", "whole.pt", "--quiet"]) == 0
    assert same(weights("four.pt"), weights("whole.pt"))
    assert json.loads(Path("runs/train-0001/config.json").read_text())["plan"]["epochs"] == 4


RESUMED = {
    "merge": ["merge", "a.pt", "mine.pt", "--data", "digits", "--by", "joint", "--no-control"],
    "grow": ["grow", "mine.pt", "--by", "2x", "--data", "digits", "--no-control"],
    "mimic": ["mimic", "--teacher", "mine.pt", "--student", "paper/mlp", "--data", "digits", "--no-control"],
    "slim": ["slim", "mine.pt", "--data", "digits"],
    "compress": ["compress", "mine.pt", "--keep", "0.5", "--data", "digits"],
}


@pytest.mark.parametrize("command", RESUMED)
def test_a_run_is_of_the_contents_of_files(here, fails, command):
    """A finished stage is loaded, and would be what another network became."""
    tokens = [*RESUMED[command], "--epochs", "1", "--run", "kept", "-o", "x.pt", "--overwrite"]
    (here / "mine.pt").write_bytes((here / "a.pt").read_bytes())
    assert run([*tokens, "--quiet"]) in (0, 1)
    assert run([*tokens, "--quiet"]) in (0, 1)
    (here / "mine.pt").write_bytes((here / "b.pt").read_bytes())
    assert "run folder kept: holds a run with contents.mine.pt = " in fails(*tokens)[1]


@pytest.mark.parametrize("command", RESUMED)
def test_a_run_is_of_its_data(here, fails, command):
    tokens = [*RESUMED[command], "--epochs", "1", "--run", "kept", "-o", "x.pt", "--overwrite"]
    (here / "mine.pt").write_bytes((here / "a.pt").read_bytes())
    data = tokens.index("digits")
    tokens[data] = "digits?train=100"
    assert run([*tokens, "--quiet"]) in (0, 1)
    tokens[data] = "digits?train=101"
    assert "run folder kept: holds a run with data = 'digits?train=100'" in fails(*tokens)[1]


def test_a_run_is_of_the_contents_of_what_specs_name(here, fails):
    def write(seed):
        draw = torch.Generator().manual_seed(seed)
        arrays = {"x": torch.randn(40, 1, 8, 8, generator=draw), "y": torch.arange(40) % 10}
        for part in ("train", "test"):
            numpy.savez(here / "arrays" / f"{part}.npz", **{name: array.numpy() for name, array in arrays.items()})
        (here / "drawn.py").write_text(NETWORK.format(seed + 1))

    (here / "arrays").mkdir()
    write(0)
    tokens = ["train", "drawn.py:small", "--data", "arrays:arrays", "--epochs", "1", "--run", "kept", "-o", "x.pt"]
    assert run([*tokens, "--overwrite", "--quiet"]) == 0
    write(1)
    assert "run folder kept: holds a run with contents." in fails(*tokens, "--overwrite")[1]


NETWORK = """
from torch import nn


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, {0}), nn.ReLU(), nn.Linear({0}, 10))
"""


def test_what_cannot_be_resumed(fails, here):
    resume = [*TRAIN, "--epochs", "2", "-o", "x.pt", "--resume"]
    assert "runs: holds no run of train to resume" in fails(*resume)[1]
    assert run([*TRAIN, "--epochs", "2", "-o", "y.pt", "--quiet"]) == 0
    assert "runs/train-0001, has plan.lr = 0.1, now 0.2" in fails(*resume, "--lr", "0.2")[1]
    assert "has plan.epochs = 2, now 1" in fails(*TRAIN, "--epochs", "1", "-o", "x.pt", "--resume")[1]
    assert "elsewhere: holds no run to resume" in fails(*resume, "--run", "elsewhere")[1]
    (here / "config.json").write_text('{"mine": 1}')
    assert "config.json: is not of a run, and would be written over" in fails(*resume[:-1], "--run", ".")[1]
    assert (here / "config.json").read_text() == '{"mine": 1}'


@pytest.mark.usefixtures("here")
def test_a_run_that_kept_nothing_leaves_no_folder(monkeypatch):
    from graphsurgery.recipes import experiment

    def failing(*_, **__):
        raise SurgeryError("no")

    monkeypatch.setattr(experiment, "fit", failing)
    assert run([*TRAIN, "-o", "x.pt"]) == 2
    assert not Path("runs").exists()


@pytest.mark.usefixtures("here")
def test_a_cut_without_training_keeps_no_run():
    assert run(["compress", "a.pt", "--keep", "0.5", "--data", "digits", "-o", "x.pt", "--quiet"]) == 0
    assert not Path("runs").exists()


def test_the_config_of_a_run_is_a_command_line(here, monkeypatch, capsys):
    assert run(["train", "nets.py:other", "--data", "digits", "--epochs", "2", "-o", "x.pt", "--quiet"]) == 0
    (here / "deeper").mkdir()
    monkeypatch.chdir(here / "deeper")
    config = "../runs/train-0001/config.json"
    assert run(["train", "--config", config, "-o", "y.pt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["spec"], found["plan"]["epochs"]) == (f"{here / 'nets.py'}:other", 2)
    assert same(weights("y.pt"), weights("../x.pt"))
    assert run([f"--config={config}", "--epochs", "1", "-o", "z.pt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["epochs"] == 1


@pytest.mark.usefixtures("here")
def test_options_from_yaml(capsys):
    Path("plan.yaml").write_text(
        "command: train\narguments: ['paper/cnn?width=3']\ndata: digits\nepochs: 3\nlr: 0.05\n"
    )
    assert run(["--config", "plan.yaml", "--epochs", "1", "-o", "x.pt", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["epochs"], plan["lr"]) == (1, 0.05)


@pytest.mark.parametrize(
    "tokens",
    [
        ["compress", "m.pt", "--keep", "0.5", "-o", "x.pt"],
        ["deepen", "m.pt", "--after", "conv1", "--after", "conv2", "--output", "x.pt"],
        ["mimic", "--teacher", "a", "b", "--no-control", "--margin", "-0.5"],
        ["merge", "a", "b", "--budget=0.5"],
    ],
    ids=lambda tokens: tokens[0],
)
def test_a_command_line_comes_back(tokens, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"command": tokens[0], "call": call_of([*tokens, "--json", "--run", "here"])}))
    expected = ["--output" if token == "-o" else token for token in tokens]
    expected = [word for token in expected for word in (token.split("=") if token.startswith("--") else [token])]
    assert with_config(["--config", str(path)]) == expected


@pytest.mark.parametrize(
    ("text", "tokens", "message"),
    [
        ("{", [], "cannot be read as JSON or YAML"),
        ("[1]", [], "holds no options by name"),
        ("epochs: 3", [], "names no command"),
        ("command: merge", ["train"], "is of the command merge, not of train"),
        ("{command: train, options: 3}", [], "expected arguments, a list, and options by name"),
    ],
)
def test_bad_configs(fails, here, text, tokens, message):
    (here / "c.yaml").write_text(text)
    code, line = fails(*tokens, "--config", "c.yaml")
    assert code == 2
    assert message in line


def test_no_config(fails):
    assert "--config: wants a file" in fails("train", "--config")[1]
    assert "nowhere.json: cannot be read" in fails("train", "--config", "nowhere.json")[1]


def test_numbers_go_on(here):
    (here / "runs" / "train-0041").mkdir(parents=True)
    (here / "runs" / "train-new").mkdir()
    assert run([*TRAIN, "--epochs", "1", "-o", "x.pt", "--quiet"]) == 0
    assert (here / "runs" / "train-0042" / "config.json").exists()
    assert os.listdir(here / "runs" / "train-0041") == []


@pytest.mark.usefixtures("here")
def test_nothing_is_collected_while_a_command_imports_and_all_is_when_it_works(monkeypatch):
    frozen, working = [], []

    def counted(graph):
        working.append(gc.isenabled())
        return cost(graph)

    monkeypatch.setattr("graphsurgery.surgery.channels.cost.cost", counted)
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for tokens, code, expected in ((["inspect", "a.pt"], 0, [False, True]), (["inspect"], 2, [False])):
        with pytest.raises(SystemExit) as ended:
            main(tokens)
        assert ended.value.code == code
        assert frozen == expected
        frozen.clear()
        gc.enable()
    assert working == [True]

"""Every command that trains says by the same options where it does, how exactly, and who is told."""

import json

import pytest
from stand_in_tensorboard import SummaryWriter, installed

from graphsurgery.cli import app, run
from graphsurgery.cli.arguments.cutting import TUNING
from graphsurgery.cli.commands import grow, lottery, merge, mimic, slim, supermask, train
from graphsurgery.training.loop.plan import TRACKERS, Execution

SPEC = "paper/cnn?width=3"
DATA = ["--data", "digits?train=200"]
ONCE = ["--epochs", "1", "-o", "new.pt"]
TRAINING = {
    "train": ([SPEC, *DATA, *ONCE], train._PLAN),
    "merge": (["a.pt", "b.pt", *DATA, "--wide-epochs", "1", "--no-control", *ONCE], merge._WISHES),
    "grow": (["a.pt", *DATA, "--by", "1.5x", "--no-control", *ONCE], grow._CONTINUING),
    "mimic": (["--teacher", "a.pt", "--student", SPEC, *DATA, *ONCE], mimic._LEARNING),
    "slim": (["a.pt", *DATA, *ONCE], slim._TRAINING),
    "lottery": ([SPEC, *DATA, "--rounds", "1", *ONCE], lottery._LEARNING),
    "supermask": (["paper/mlp?hidden=9", "--data", "sine", *ONCE], supermask._LEARNING),
    "compress": (["a.pt", *DATA, "--keep", "0.5", *ONCE], TUNING),
}
"""What makes a command train, and its options."""


def options_of(command):
    """By the name of every option: where its value goes."""
    collection = app[command].assemble_argument_collection()
    return {name: argument for argument in collection for name in argument.names}


def test_no_other_command_trains():
    """A command with epochs is one of these; factorize, widen and deepen only edit."""
    found = {command for command in app if not command.startswith("-") and "--epochs" in options_of(command)}
    assert found == set(TRAINING)


@pytest.mark.parametrize("command", TRAINING)
def test_the_plan_is_the_option_group(command):
    assert isinstance(TRAINING[command][1], Execution)
    options = options_of(command)
    assert {"--mixed-precision", "--device", "--workers", "--tracker"} <= set(options)
    assert options["--tracker"].parameter.help == options_of("train")["--tracker"].parameter.help


@pytest.mark.parametrize("command", TRAINING)
@pytest.mark.usefixtures("here")
def test_what_a_command_trains_gets_its_options(command, capsys, monkeypatch):
    """Device, precision and tracker; and of every network in the table validation data say how good it is."""
    installed(monkeypatch)
    tokens, _ = TRAINING[command]
    execution = ["--tracker", "tensorboard", "--mixed-precision", "bf16", "--device", "cpu"]
    assert run([command, *tokens, *execution, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    folder = "new.pt/states" if command == "lottery" else f"runs/{command}-0001"
    assert SummaryWriter.made
    for place, writer in SummaryWriter.made.items():
        assert place.startswith(f"{folder}/tensorboard/")
        assert (writer.config["device"], writer.config["mixed_precision"]) == ("cpu", "bf16")
        assert {"train/total", "validation/loss", "lr"} <= set(writer.scalars)
        assert writer.closed
    told = found.get("outcome", found.get("lottery", {"rows": []}))
    assert all(row["validation"][told["metric"]] is not None for row in told["rows"])
    assert bool(told["rows"]) == (command != "train")


@pytest.mark.parametrize("command", TRAINING)
def test_a_missing_tracker_is_one_line(command, fails, monkeypatch):
    monkeypatch.setitem(TRACKERS, "wandb", ("no-such",))
    code, line = fails(command, *TRAINING[command][0], "--tracker", "wandb")
    assert (code, line) == (2, "tracker wandb: its package is missing; pip install no-such")

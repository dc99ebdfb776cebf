"""Files of weights on the command line."""

import json

import pytest
import torch

import graphsurgery as gs
from graphsurgery.cli import run
from graphsurgery.models.preprocessing import preprocessing_of


@pytest.fixture
def two_sets(here):
    """A file with two sets of weights of a.pt, one with another prefix and other values."""
    state = gs.load(here / "a.pt").module.state_dict()
    moved = {f"module.{name}": tensor * 2 for name, tensor in state.items()}
    torch.save({"state_dict": dict(state), "state_dict_ema": moved, "epoch": 1}, here / "w.pth")
    return "w.pth"


def test_a_checkpoint_is_the_architecture_and_the_key_says_which(two_sets, capsys):
    assert run(["compress", two_sets, "--arch", "a.pt", "--key", "state_dict_ema", "--keep", "0.5", "-o", "s.pt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "weights    w.pth: state_dict_ema.module; beside them it holds state_dict"
    lineage = gs.load("s.pt").lineage
    assert [record["weights"] for record in lineage if record["pass"] == "open"] == ["state_dict_ema.module"]
    assert run(["inspect", two_sets, "--arch", "a.pt", "--key", "state_dict", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights_taken"] == {"w.pth": "state_dict; beside them it holds state_dict_ema"}
    assert found["next"].startswith("graphsurgery compress w.pth --arch a.pt --key state_dict --keep 0.5")


def test_without_a_key_nothing_is_chosen(two_sets, fails):
    code, message = fails("compress", two_sets, "--arch", "a.pt", "--keep", "0.5", "-o", "s.pt")
    assert code == 2
    assert message == (
        "w.pth: several sets of weights fit it, and differ: state_dict, state_dict_ema.module; choose one with --key"
    )


def test_one_set_needs_no_words_and_is_prepared_for_as_its_architecture(here, capsys):
    torch.save(gs.load(here / "a.pt").module.state_dict(), here / "one.pth")
    assert run(["inspect", "one.pth", "--arch", "a.pt"]) == 0
    assert "weights  " not in capsys.readouterr().out
    assert preprocessing_of("one.pth", "a.pt") == preprocessing_of("a.pt")

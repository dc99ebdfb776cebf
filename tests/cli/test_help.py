"""Help is quick: nothing heavy is imported for it."""

import subprocess
import sys

import pytest

from graphsurgery import __version__
from graphsurgery.cli import app, run

COMMANDS = (
    *("compress", "deepen", "demo", "diff", "doctor", "export", "factorize", "grow", "inspect", "install", "lottery"),
    *("masks", "merge", "mimic", "slim", "supermask", "train", "view", "widen", "widths"),
)
HEAVY = ["torch", "numpy", "onnx", "onnxruntime", "torchvision", "matplotlib", "accelerate", "networkx"]
SCRIPT = """
import sys
from graphsurgery.cli import run
assert run(sys.argv[2:]) == 0
print(*(name for name in sys.argv[1].split(",") if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("tokens", [["--help"], ["merge", "--help"], ["train", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(tokens):
    command = [sys.executable, "-c", SCRIPT, ",".join(HEAVY), *tokens]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Usage: graphsurgery" in done.stdout
    assert done.stderr.strip() == ""


def test_all_commands_are_listed(capsys):
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert {name for name in app if not name.startswith("-")} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert run([command, "--help"]) == 0
    assert f"Usage: graphsurgery {command}" in capsys.readouterr().out


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__

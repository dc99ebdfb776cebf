"""Help is quick: nothing heavy is imported for it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from graphsurgery import __version__
from graphsurgery.cli import app, run
from graphsurgery.cli.arguments.examples import EXAMPLES
from graphsurgery.cli.process.failures import EXIT_CODES
from graphsurgery.errors import SurgeryError

COMMANDS = (
    *("data", "models"),
    *("compress", "deepen", "demo", "diff", "doctor", "export", "factorize", "grow", "inspect", "install", "lottery"),
    *("masks", "merge", "mimic", "slim", "supermask", "train", "view", "widen", "widths"),
)
HEAVY = ["torch", "numpy", "onnx", "onnxruntime", "torchvision", "matplotlib", "accelerate", "networkx"]
SCRIPT = """
import sys
from graphsurgery.cli import run
from graphsurgery.cli.process import watching
watching.EVERY = float("inf")  # however slow the machine is
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
    assert {name for name in app if not name.startswith("-")} == set(COMMANDS) == set(EXAMPLES)
    assert all(f"{code} {meaning.partition(' ')[0]}" in shown for code, meaning in EXIT_CODES.items())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: graphsurgery {command}" in shown
    assert all(example in shown for example in EXAMPLES[command])  # on 80 columns none is folded


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.fixture
def named(tmp_path, monkeypatch):
    """A folder in which every file is that the examples read."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for line in (line for lines in EXAMPLES.values() for line in lines):
        for name in re.findall(r"[\w/]+\.(?:pt|onnx|safetensors|json|py)\b", line):
            Path(name).touch()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("named")
def test_the_examples_are_command_lines(command):
    """Each is taken by the signature of the command, and by what looks at its arguments."""
    assert len(set(EXAMPLES[command])) == 2
    for line in EXAMPLES[command]:
        program, *tokens = shlex.split(line)
        assert (program, tokens[0]) == ("graphsurgery", command)
        function, _, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        assert function.__name__ == command


OPENING = {
    "inspect": [],
    "doctor": [],
    "view": [],
    "compress": ["--keep", "0.5", "-o", "x.pt"],
    "widen": ["--by", "2x", "-o", "x.pt"],
    "deepen": ["--after", "auto", "-o", "x.pt"],
    "factorize": ["-o", "x.pt"],
    "export": ["-o", "x.onnx"],
    "grow": ["--by", "2x", "--data", "digits", "-o", "x.pt"],
    "slim": ["--data", "digits", "-o", "x.pt"],
    "lottery": ["--data", "digits", "-o", "x"],
    "masks": [],
    "merge": ["MODEL", "--data", "digits", "-o", "x.pt"],
    "mimic": ["--student", "paper/mlp", "--data", "digits", "-o", "x.pt"],
    "supermask": ["--data", "digits", "-o", "x.pt"],
    "train": ["--data", "digits", "-o", "x.pt"],
    "widths": ["--data", "digits"],
}
"""The commands that open a network, with what else they need."""
OPENED = {
    ".onnx": [
        "graphsurgery.onnx.importing.importer.import_onnx",
        "graphsurgery.onnx.files.model_file.read_onnx",
        "graphsurgery.training.objectives.teachers.OnnxTeacher",
    ],
    ".safetensors": ["graphsurgery.models.loading.load_weights"],
}
"""What opens such a file."""


class Reached(SurgeryError):
    """The file would be opened."""


@pytest.mark.parametrize("ending", OPENED)
@pytest.mark.parametrize("command", OPENING)
def test_help_names_the_files_that_a_command_opens(command, ending, tmp_path, monkeypatch, capsys):
    import torch
    from safetensors.torch import save_file

    def reached(*_, **__):
        raise Reached("reached")

    for place in OPENED[ending]:
        monkeypatch.setattr(place, reached)
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.ones(2)}, f"m{ending}")
    has_arch = ending == ".safetensors" and command not in ("supermask", "train", "widths")
    arch = ["--arch", "paper/cnn"] if has_arch else []
    model = ["--teacher", f"m{ending}"] if command == "mimic" else [f"m{ending}"]
    rest = [f"m{ending}" if token == "MODEL" else token for token in OPENING[command]]
    assert run([command, *model, *rest, *arch, "--json"]) == 2
    opens = json.loads(capsys.readouterr().out)["error"]["kind"] == "Reached"
    assert run([command, "--help"]) == 0
    shown = capsys.readouterr().out.partition("Examples:")[0]
    assert (ending in shown) == opens


def test_completion_is_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["--install-completion", "--shell", "bash"]) == 0
    (script,) = (path for path in tmp_path.rglob("graphsurgery") if path.is_file())
    assert str(script) in capsys.readouterr().out
    text = script.read_text()
    assert all(command in text for command in COMMANDS)
    assert "--keep-space" in text


@pytest.mark.parametrize("module", ["graphsurgery", "graphsurgery.cli"])
def test_python_runs_the_package(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == __version__

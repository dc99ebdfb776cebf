"""What a terminal of 80 columns shows: no line is longer, no word broken; and all of it with --wide."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from rich.cells import cell_len

from graphsurgery.cli import run
from graphsurgery.cli.output import in_lines

NETS = """
from torch import nn

INPUT_SHAPE = (3, 8, 8)

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first_projection_of_the_encoder = nn.Conv2d(3, 8, 3, padding=1)
        self.self_attention_like_mixing_of_features = nn.Conv2d(8, 8, 1)
        self.classification_head_of_the_whole_network = nn.Linear(8, 5)

    def forward(self, x):
        x = self.first_projection_of_the_encoder(x)
        x = (x + self.self_attention_like_mixing_of_features(x)).relu()
        return self.classification_head_of_the_whole_network(x.mean((2, 3)))

def long():
    return Encoder()
"""
STYLE = re.compile(r"\x1b\[[0-9;]*m")
COMMANDS = {
    "inspect": "inspect long.py:long",
    "compress": "compress long.py:long --keep 0.5 -o small_network_of_the_encoder.pt --overwrite",
    "compress dry": "compress long.py:long --keep-space first_projection_of_the_encoder=3 -o small.pt --dry-run",
    "deepen dry": "deepen long.py:long --after auto -o deep.pt --dry-run",
    "factorize dry": "factorize long.py:long --rank 0.5 -o thin.pt --dry-run",
    "doctor": "doctor long.py:long --no-onnx",
    "masks": "masks long.py:long",
    "diff": "diff long.onnx smaller.onnx --no-latency --all",
    "view": "view long.py:long --html page.html --overwrite",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("narrow")
    (found / "long.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        assert run(shlex.split("widen long.py:long --by 2x -o wide.pt --quiet")) == 0
        assert run(shlex.split("export wide.pt -o long.onnx --quiet")) == 0
        assert run(shlex.split("compress long.onnx --keep 0.5 -o smaller.onnx --quiet")) == 0
    return found


@pytest.fixture
def shown(folder, monkeypatch, capsys):
    """The lines that a command prints on a terminal of some columns."""

    def printed(command, columns):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        for name, value in {"COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"}.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        assert run(shlex.split(command)) == 0
        return [line.rstrip() for line in STYLE.sub("", capsys.readouterr().out).splitlines()]

    return printed


def words(lines):
    return {word for line in lines for word in line.split() if set(word) != {"─"}}


TIMES = {f"{n / 10:.1f}" for n in range(1000)}
"""Seconds differ from run to run."""


@pytest.mark.parametrize("name", COMMANDS)
def test_80_columns(shown, name):
    lines, wide = shown(COMMANDS[name], 80), shown(f"{COMMANDS[name]} --wide", 80)
    assert max(map(cell_len, lines)) <= 80
    said = {"more", "no", "room", "for:", "--wide", "shows", "all", "\\", *map(str, range(10))}
    heads = {f"{word}{sign}" for word in words(wide) for sign in ",;"}
    broken = {word for word in words(lines) if "…" not in word} - words(wide) - said - heads - TIMES
    assert not broken
    assert not any("no room for" in line for line in wide)


def test_diff_is_readable(shown):
    lines = shown(COMMANDS["diff"], 80)
    rows = [line for line in lines if line.startswith("~")]
    assert len(rows) >= 5
    assert not any(line.startswith("  ") and line.strip() for line in lines[1 : lines.index(rows[-1])])  # one line each
    assert any("…" in row for row in rows)
    assert any("classification_head_of_the_whole_network" in line for line in shown(f"{COMMANDS['diff']} --wide", 80))


def test_off_a_terminal_nothing_is_folded(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert run(shlex.split(COMMANDS["diff"])) == 0
    text = capsys.readouterr().out
    assert "classification_head_of_the_whole_network" in text
    assert "no room for" not in text


@pytest.mark.parametrize("width", [30, 60, 69])
def test_a_command_in_several_lines_is_the_same_command(width):
    command = shlex.join(["graphsurgery", "compress", "a file.pt", *["--keep-space", "layer1.0=3"] * 9, "-o", "x.pt"])
    lines = in_lines(command, width, command=True)
    assert len(lines) > 1
    assert max(map(len, lines)) <= width
    script = "printf '%s\\n' " + "\n".join(lines)
    found = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == shlex.split(command)
    assert in_lines(command, 1000, command=True) == [command]


def test_an_error_is_folded_on_a_terminal_only(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    name = "a_network_that_nobody_has_written_yet_under_this_name.pt"
    assert run(["inspect", name]) == 2
    whole = capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "72")
    assert run(["inspect", name]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(whole.splitlines()) == 1
    assert len(lines) == 2
    assert max(map(len, lines)) <= 72
    assert " ".join(" ".join(lines).split()) == " ".join(whole.split())

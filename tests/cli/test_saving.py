"""What was computed is saved before it is printed, whatever becomes of the terminal and of the controls."""

import io
import os
import sys

import pytest
import torch
from forked import Forked

import graphsurgery as gs
from graphsurgery.cli import main, run
from graphsurgery.cli.process.streams import _PLAIN
from graphsurgery.errors import SpecError
from graphsurgery.models.spec_text import anchored
from graphsurgery.recipes import experiment
from graphsurgery.recipes.merging import controls
from graphsurgery.training.loop.fit import fit

SPEC = "paper/cnn?width=3"
QUICK = ["--epochs", "1", "--device", "cpu"]
COMPARING = {
    "merge": ["merge", "a.pt", "b.pt", "--data", "digits", "--wide-epochs", "1", *QUICK],
    "grow": ["grow", "a.pt", "--data", "digits", "--by", "2x", *QUICK],
    "mimic": ["mimic", "--teacher", "a.pt", "b.pt", "--student", "paper/mlp?hidden=8", "--data", "digits", *QUICK],
}
"""Commands that train controls."""


def _one_after_another(*commands):
    """Commands in this process, each with the encoding of the standard output, or None for the one that it has.

    The encoding is strict, as PYTHONIOENCODING has it.
    """
    for tokens, encoding in commands:
        if encoding:
            sys.stdout.reconfigure(encoding=encoding)
        assert run(tokens) == 0, tokens
        sys.stdout.flush()  # as when the interpreter ends


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_of_few_characters(here, encoding):
    commands = {
        "s.pt": ["compress", "a.pt", "--keep", "0.5", "-o", "s.pt"],
        "s.onnx": ["export", "a.pt", "-o", "s.onnx"],
        "m.pt": [*COMPARING["mimic"], "--no-control", "-o", "m.pt"],
        "help": ["compress", "--help"],
    }
    for name, tokens in commands.items():
        with Forked(lambda tokens=tokens: _one_after_another((tokens, encoding)), f"{name}.txt", "errors") as process:
            assert process.wait() == 0, (here / "errors").read_text()
        assert (here / f"{name}.txt").read_bytes().decode(encoding)
        assert (here / name).exists() == ("-o" in tokens)


def test_an_error_with_characters_that_the_terminal_has_not(here, monkeypatch):
    (here / "名.pt").write_bytes(b"none")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding="ascii", errors="strict", write_through=True))
    assert run(["inspect", "名.pt"]) == 2
    assert written.getvalue().decode("ascii")[:14] == "error  ?.pt: i"


def test_what_the_commands_print_has_a_form_in_ascii():
    assert all(form.isascii() for form in _PLAIN.values())


def test_a_reader_that_goes_away_loses_nothing(here):
    full = {
        "compress": ["compress", "a.pt", "--keep", "0.5", "--data", "digits", *QUICK],
        "merge": [*COMPARING["merge"], "--no-control"],
    }
    forms = {"text": [], "json": ["--json"]}
    commands = {f"{name}-{form}.pt": (full[name], forms[form]) for name in full for form in forms}
    started = [([*tokens, "-o", name, *form], None) for name, (tokens, form) in commands.items()]
    reading, writing = os.pipe()
    with Forked(lambda: _one_after_another(*started), writing, "errors", closed=[reading]) as process:
        os.close(writing)
        os.close(reading)
        code = process.wait()
    errors = (here / "errors").read_text()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    for name in commands:
        assert gs.load(here / name).spaces


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full is Linux's")
def test_a_full_disk_behind_standard_output_is_an_error_after_the_network_is_saved(here):
    with open("/dev/full", "w") as full:
        tokens = ["compress", "a.pt", "--keep", "0.5", "-o", "s.pt"]
        with Forked(lambda: main(tokens), full.fileno(), "errors") as process:
            assert process.wait() == 2
    told = (here / "errors").read_text()
    assert told.splitlines()[-1] == "error  [Errno 28] No space left on device"
    assert "Traceback" not in told
    assert gs.load(here / "s.pt").spaces


@pytest.mark.parametrize(
    ("command", "stage"), [("merge", "control-longer"), ("grow", "random-padding"), ("mimic", "labels")]
)
def test_the_network_is_saved_before_its_controls_are_trained(here, monkeypatch, command, stage):
    def fitting(*args, **options):
        if options["stage"] == stage:
            assert gs.load(here / "x.pt").lineage[-1]["pass"] == command
            raise KeyboardInterrupt
        return fit(*args, **options)

    monkeypatch.setattr(experiment, "fit", fitting)
    assert run([*COMPARING[command], "-o", "x.pt", "--quiet"]) == 130
    assert gs.load(here / "x.pt").lineage[-1]["pass"] == command


def test_a_control_that_cannot_be_built_is_found_before_training(fails, monkeypatch):
    def gone(spec, *_):
        raise SpecError(f"{spec}: is not there any more")

    monkeypatch.setattr(controls, "fresh", gone)
    monkeypatch.setattr(experiment, "fit", lambda *_, **__: pytest.fail("trains"))
    code, line = fails("merge", "a.pt", "b.pt", "--data", "digits", "-o", "x.pt")
    assert code == 2
    assert "the control cannot be built as the first parent was" in line
    assert "--no-control" in line


def test_specs_of_files_are_found_again_from_another_folder(here, monkeypatch):
    assert run(["train", "nets.py:other", "--data", "digits", "-o", "o.pt", *QUICK, "--quiet"]) == 0
    record = gs.load("o.pt").lineage[-1]
    assert record["spec"] == f"{here / 'nets.py'}:other"
    (here / "deeper").mkdir()
    monkeypatch.chdir(here / "deeper")
    command = ["merge", "../o.pt", "../other.pt", "--data", "digits", "--wide-epochs", "1", *QUICK]
    assert run([*command, "-o", "x.pt", "--quiet"]) == 0
    assert gs.load("x.pt").spaces


def test_anchored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    assert anchored("nets.py:other?width=3") == f"{tmp_path / 'nets.py'}:other?width=3"
    assert anchored("imagefolder:images?size=8") == f"imagefolder:{tmp_path / 'images'}?size=8"
    for spec in ("digits", "paper/cnn?width=3", "cifar10:nowhere", "timm/resnet10t"):
        assert anchored(spec) == spec


def test_the_controls_change_nothing(here):
    """The network is the same with and without a control."""
    assert run([*COMPARING["mimic"], "-o", "x.pt", "--quiet"]) == 0
    assert run([*COMPARING["mimic"], "--no-control", "-o", "y.pt", "--quiet"]) == 0
    x, y = (gs.load(here / name).module.state_dict() for name in ("x.pt", "y.pt"))
    assert all(torch.equal(x[key], y[key]) for key in y)

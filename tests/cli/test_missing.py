"""What is read and is not there is refused before torch is imported, by every command and every option that reads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

from graphsurgery.cli import app
from graphsurgery.cli.arguments.examples import EXAMPLES
from graphsurgery.cli.arguments.sources import examples_there, there
from graphsurgery.errors import SurgeryError

READING = {"model", "spec", "source", "others", "first", "second", "more", "teacher", "student", "before", "after"}
READING |= {"data", "calib", "transfer", "arch", "like", "apply", "into"}
"""Arguments that name something to be read, wherever a command has them."""
NOT_READ = {("deepen", "after"), ("grow", "after"), ("compress", "calib")}
"""Names of layers; and what has a check of its own."""

WALK = """
import json, sys
from graphsurgery.cli import run
from graphsurgery.cli.process import watching
watching.EVERY = float("inf")
for tokens in json.loads(sys.argv[1]):
    print(*tokens[:1], run(tokens), "torch" in sys.modules, file=sys.stderr)
"""


def arguments(command):
    """The arguments of a command that are parsed, by the names of their last fields."""
    found = app[command].assemble_argument_collection()
    return {argument.field_info.name: argument for argument in found if argument.parse}


@pytest.mark.parametrize("command", EXAMPLES)
def test_whatever_is_read_is_looked_for(command):
    """Every argument of this kind has the check, and no other name hides one."""
    for name, argument in arguments(command).items():
        checked = {there, examples_there} & set(argument.parameter.validator or ())
        reads = name in READING and (command, name) not in NOT_READ
        assert bool(checked) == (reads or (command, name) == ("compress", "calib")), name


def commands():
    """Every command line with a file that is missing, in each place where one is read."""
    rest = {
        "compress": ["--keep", "0.5", "-o", "x.pt"],
        "widen": ["--by", "2x", "-o", "x.pt"],
        "deepen": ["--after", "auto", "-o", "x.pt"],
        "factorize": ["-o", "x.pt"],
        "export": ["-o", "x.onnx"],
        "grow": ["--data", "digits", "-o", "x.pt"],
        "slim": ["--data", "digits", "-o", "x.pt"],
        "lottery": ["--data", "digits", "-o", "x"],
        "merge": ["paper/cnn", "--data", "digits", "-o", "x.pt"],
        "supermask": ["--data", "digits", "-o", "x.pt"],
        "train": ["--data", "digits", "-o", "x.pt"],
        "widths": ["--data", "digits"],
        "install": ["--into", "hf:x", "-o", "x"],
        "diff": ["no.onnx"],
    }
    models = ["inspect", "doctor", "view", "masks", *rest]
    for command in models:
        for missing in ("no.onnx", "no.pt", "no.safetensors", "no.py:f", "folder/no.pth", "nets.py"):
            yield [command, missing, *rest.get(command, [])]
    spec = "paper/cnn"
    data = ("imagefolder:no", "cifar10:no", "no.py:f", "nets.py", "imagefolder")
    for missing in data:
        yield ["train", spec, "--data", missing, "-o", "x.pt"]
        yield ["mimic", "--teacher", spec, "--student", spec, "--data", "digits", "--transfer", missing, "-o", "x.pt"]
        yield ["export", spec, "--data", missing, "-o", "x.onnx"]
    yield ["mimic", "--teacher", spec, "no.onnx", "--student", spec, "--data", "digits", "-o", "x.pt"]
    yield ["mimic", "--teacher", spec, "--student", "no.pt", "--data", "digits", "-o", "x.pt"]
    yield ["merge", spec, spec, "no.pt", "--data", "digits", "-o", "x.pt"]
    yield ["inspect", spec, "--arch", "no.pt"]
    yield ["widen", spec, "--like", "no.pt", "-o", "x.pt"]
    yield ["masks", "paper/mlp", "--apply", "no.pt", "-o", "x.pt"]
    yield ["compress", spec, "--keep", "0.5", "--calib", "no/where", "-o", "x.pt"]
    yield ["train", "--config", "no.json"]


def test_what_is_missing_is_refused_before_torch_is_imported(tmp_path):
    (tmp_path / "nets.py").write_text("def small(): ...\n")
    lines = list(commands())
    done = subprocess.run(
        [sys.executable, "-c", WALK, json.dumps(lines)], capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE
    )
    told = done.stderr.splitlines()
    assert len(told) == 2 * len(lines), done.stderr[-2000:]
    for tokens, error, result in zip(lines, told[::2], told[1::2], strict=True):
        assert error.startswith("error  "), tokens
        assert result == f"{tokens[0]} 2 False", (tokens, error)
    assert [path.name for path in tmp_path.iterdir()] == ["nets.py"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "bset.pt",
            r"^bset\.pt: no such file; expected a checkpoint, or weights .*; did you mean best\.pt\?$",
        ),
        ("zzz.pt", r"zzz\.pt: no such file; expected a checkpoint, or weights saved by torch\.save$"),
        ("no/a.onnx", r"no/a\.onnx: no such file; expected an ONNX file; there is no folder no$"),
        ("folder.pt", r"folder\.pt: is a folder, expected a checkpoint"),
        ("ultralytics:no.pt", r"no\.pt: no such file"),
        ("imagefolder:no?size=3", r"no is not a folder; give imagefolder:DIR with DIR/train/CLASS/ images"),
        ("cifar10:no", "no is not a folder; give cifar10:DIR"),
        ("arrays:no", r"no is not a folder; give arrays:DIR with \.npz files$"),
        ("nets.py", r"nets\.py: names a Python file, and which function of it is missing; give nets\.py:small$"),
        ("nets.py:?width=3", r"give nets\.py:small$"),
        ("empty.py", r"it defines none; give empty\.py:FUNCTION when it does"),
    ],
)
def test_what_is_said_of_it(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    Path("best.pt").touch()
    Path("folder.pt").mkdir()
    Path("nets.py").write_text("def small(width=3): ...\n")
    Path("empty.py").touch()
    with pytest.raises(SurgeryError, match=message):
        there(str, source)


@pytest.mark.parametrize("source", ["paper/cnn", "timm/resnet10t.c3_in1k", "hf:BertModel", "cifar10", "digits", None])
def test_what_names_no_file_is_left_alone(source):
    there(str, source)

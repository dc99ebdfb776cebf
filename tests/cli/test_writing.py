"""What is written: nothing over a file that exists or is read, all of it under a name that says what it is."""

import os
from pathlib import Path

import pytest

import graphsurgery as gs
from graphsurgery.cli import app, run
from graphsurgery.cli.options import Writing, files_of
from graphsurgery.errors import SurgeryError

SPEC = "paper/cnn?width=3"
QUICK = ["--epochs", "1", "--device", "cpu"]
WRITERS = {
    "train": ["train", SPEC, "--data", "digits", *QUICK],
    "compress": ["compress", "a.pt", "--keep", "0.5"],
    "compress --dead": ["compress", "a.pt", "--dead"],
    "widen": ["widen", "a.pt", "--by", "2x"],
    "deepen": ["deepen", "a.pt", "--after", "auto"],
    "factorize": ["factorize", "a.pt", "--rank", "0.5"],
    "merge": ["merge", "a.pt", "b.pt", "--data", "digits"],
    "grow": ["grow", "a.pt", "--data", "digits", "--by", "2x", *QUICK],
    "mimic": ["mimic", "--teacher", "b.pt", "--student", "a.pt", "--data", "digits", *QUICK],
    "slim": ["slim", "a.pt", "--data", "digits", *QUICK],
    "supermask": ["supermask", SPEC, "--data", "digits", *QUICK],
    "masks": ["masks", "a.pt", "--apply", "b.pt"],
}
"""Commands that write a network with -o."""

OTHERS = {
    "export": (["export", "a.pt"], "-o", "x.onnx"),
    "install": (["install", "a.pt", "--into", "paper/cnn"], "-o", "x.pt"),
    "view": (["view", "a.pt"], "--html", "x.html"),
    "masks alone": (["masks", "a.pt"], "-o", "x.json"),
    "merge --onnx": (["merge", "a.pt", "b.pt", "--data", "digits", "-o", "new.pt"], "--onnx", "x.onnx"),
    "merge --report": (["merge", "a.pt", "b.pt", "--data", "digits", "-o", "new.pt"], "--report", "x.html"),
    "grow --report": ([*WRITERS["grow"], "-o", "new.pt"], "--report", "x.html"),
    "mimic --report": ([*WRITERS["mimic"], "-o", "new.pt"], "--report", "x.html"),
    "slim --report": ([*WRITERS["slim"], "-o", "new.pt"], "--report", "x.html"),
    "widths --plot": (["widths", "a.pt", "--data", "digits"], "--plot", "x.svg"),
    "widths --report": (["widths", "a.pt", "--data", "digits"], "--report", "x.html"),
}
"""Other files that commands write, by command and option."""

ALL = {**{name: (tokens, "-o", "x.pt") for name, tokens in WRITERS.items()}, **OTHERS}


def test_every_command_that_writes_files_is_here(capsys):
    """A command either takes --overwrite, or writes no file."""
    named = {tokens[0] for tokens, _, _ in ALL.values()} | {"demo", "lottery"}
    commands = {name for name in app if not name.startswith("-")}
    taking = {name for name in commands if not run([name, "--help"]) and "--overwrite" in capsys.readouterr().out}
    assert taking == named
    assert commands - taking == {"inspect", "diff", "doctor", "data", "models"}


@pytest.mark.parametrize("name", ALL)
def test_a_file_that_exists_stays(fails, here, name):
    tokens, option, file = ALL[name]
    (here / file).write_text("mine")
    code, line = fails(*tokens, option, file)
    assert (code, line) == (2, f"{file}: exists; give another name, or --overwrite to write over it")
    assert (here / file).read_text() == "mine"


@pytest.mark.parametrize("name", [name for name in ALL if name != "install"])  # which writes folders, too
def test_the_name_says_what_is_written(fails, name):
    tokens, option, _ = ALL[name]
    code, line = fails(*tokens, option, "x.txt")
    assert code == 2
    assert "x.txt" in line
    assert "end the name in" in line or "are a .json file" in line


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize("how", ["name", "dotted", "whole", "symlink", "hardlink"])
@pytest.mark.parametrize("name", [name for name, tokens in WRITERS.items() if "a.pt" in tokens])
def test_what_is_read_is_never_written_over(fails, here, name, how, overwrite):
    (here / "a.pt").unlink()
    (here / "a.pt").write_bytes((here / "b.pt").read_bytes())
    before = (here / "a.pt").read_bytes()
    output = {"name": "a.pt", "dotted": "./a.pt", "whole": str(here / "a.pt")}.get(how, "link.pt")
    if how == "symlink":
        (here / "link.pt").symlink_to("a.pt")
    if how == "hardlink":
        os.link(here / "a.pt", here / "link.pt")
    code, line = fails(*WRITERS[name], "-o", output, *overwrite)
    assert code == 2
    assert "is read by this command" in line
    assert (here / "a.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("tokens", "output"),
    [
        (["train", "nets.py:other", "--data", "digits"], "nets.py"),
        (["compress", "nets.py:other", "--keep", "0.5"], "nets.py"),
        (["export", "a.pt"], "a.pt"),
    ],
)
def test_files_of_other_kinds_are_not_written_over(fails, here, tokens, output):
    before = (here / output).read_bytes()
    assert fails(*tokens, "-o", output, "--overwrite")[0] == 2
    assert (here / output).read_bytes() == before


@pytest.mark.usefixtures("here")
def test_overwrite_writes_over():
    Path("x.pt").write_text("old")
    assert run([*WRITERS["compress"], "-o", "x.pt", "--overwrite", "--quiet"]) == 0
    assert gs.load("x.pt").spaces


def test_an_onnx_file_is_edited_in_place_by_its_name_only(fails, here):
    assert run(["export", "a.pt", "-o", "m.onnx", "--quiet"]) == 0
    before = (here / "m.onnx").read_bytes()
    os.link(here / "m.onnx", here / "hard.onnx")
    (here / "soft.onnx").symlink_to("m.onnx")
    compress = ["compress", "m.onnx", "--keep", "0.5", "-o"]
    for other in ("hard.onnx", "soft.onnx"):
        code, line = fails(*compress, other, "--overwrite")
        assert code == 2
        assert f"{other}: is read by this command (there called m.onnx)" in line
    assert "m.onnx: exists" in fails(*compress, "m.onnx")[1]
    assert "is read by this command" in fails("export", "m.onnx", "-o", "m.onnx", "--overwrite")[1]
    assert (here / "m.onnx").read_bytes() == before
    assert run([*compress, "m.onnx", "--overwrite", "--quiet"]) == 0
    assert (here / "m.onnx").read_bytes() != before


def test_two_files_of_one_name():
    with pytest.raises(SurgeryError, match=r"x\.html: would be written twice"):
        Writing().allow(report=Path("x.html"), picture=Path("./x.html"))


def test_a_link_to_nowhere_is_a_file_that_exists(here):
    (here / "x.pt").symlink_to("nowhere")
    with pytest.raises(SurgeryError, match=r"x\.pt: exists"):
        Writing().allow(network=Path("x.pt"))


def test_the_demo_and_the_lottery_keep_what_is_in_their_folders(fails, here):
    (here / "demo").mkdir()
    (here / "demo" / "report.html").write_text("mine")
    assert "demo/report.html: exists" in fails("demo")[1]
    (here / "out").mkdir()
    (here / "out" / "lottery.md").write_text("mine")
    assert "out/lottery.md: exists" in fails("lottery", SPEC, "--data", "digits", "-o", "out")[1]


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("a.pt", ["a.pt"]),
        ("nets.py:other?width=3", ["nets.py:other?width=3", "nets.py:other", "nets.py", "other"]),
        ("imagefolder:DIR?size=8", ["imagefolder:DIR?size=8", "imagefolder:DIR", "imagefolder", "DIR"]),
    ],
)
def test_the_files_that_an_argument_may_mean(source, files):
    assert [str(file) for file in files_of(source)] == files


@pytest.mark.parametrize("into", ["hf:a.pt", "hf:b.pt"])
def test_install_never_writes_over_what_it_reads(fails, here, into):
    before = (here / "a.pt").read_bytes()
    code, line = fails("install", "b.pt" if into == "hf:a.pt" else "a.pt", "--into", into, "-o", "a.pt", "--overwrite")
    assert (code, line) == (2, "a.pt: is read by this command; give another name for what is written")
    assert (here / "a.pt").read_bytes() == before

"""Names that would repaint a screen: no command writes them as they are, to the screen, a page or a document."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphsurgery.checkpoint import save
from graphsurgery.cli import run
from graphsurgery.errors import SurgeryError, one_line, visible
from graphsurgery.models.loading import open_model

BAD = "\x1b[2J\x9b31m\x07\u202e\u2066\n\r[red]"


def hostile(path, operator="Relu"):
    """A network of three layers whose every name is `BAD`, with a number."""
    draw = np.random.default_rng(0)
    arrays = {"w": draw.normal(size=(8, 3, 3, 3)), "v": draw.normal(size=(8, 8, 1, 1)), "u": draw.normal(size=(8, 4))}
    nodes = [
        helper.make_node("Conv", ["in", "w"], ["a"], "one", pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["a"], ["b"], "two"),
        helper.make_node("Conv", ["b", "v"], ["c"], "three"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], "four"),
        helper.make_node("Flatten", ["d"], ["e"], "five"),
        helper.make_node("MatMul", ["e", "u"], ["out"], "six"),
    ]
    for node in nodes:
        node.name = BAD + node.name
        node.input[:] = [BAD + name for name in node.input]
        node.output[:] = [BAD + name for name in node.output]
    graph = helper.make_graph(
        nodes,
        BAD,
        [helper.make_tensor_value_info(f"{BAD}in", TensorProto.FLOAT, [f"{BAD}batch", 3, 6, 6])],
        [helper.make_tensor_value_info(f"{BAD}out", TensorProto.FLOAT, [f"{BAD}batch", 4])],
        [numpy_helper.from_array(array.astype(np.float32), BAD + name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name=BAD)
    onnx.save(model, str(path))
    return path


def assert_safe(text):
    """Nothing in it but text and the ends of lines."""
    bad = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n"]
    assert not bad, ascii(bad[:9])


COMMANDS = {
    "inspect": ["inspect", "m.onnx"],
    "install": ["install", "m.onnx", "--into", "paper/cnn", "-o", "x"],
    "inspect json": ["inspect", "m.onnx", "--json"],
    "compress": ["compress", "m.onnx", "--keep", "0.5", "-o", "x.onnx"],
    "compress json": ["compress", "m.onnx", "--keep", "0.5", "-o", "x.onnx", "--json"],
    "compress a space": ["compress", "m.onnx", "--keep-space", f"{BAD}=3", "-o", "x.onnx"],
    "widen": ["widen", "m.onnx", "--factor", "2", "-o", "x.onnx"],
    "deepen": ["deepen", "m.onnx", "-o", "x.pt"],
    "factorize": ["factorize", "m.onnx", "--keep", "0.5", "-o", "x.onnx"],
    "doctor": ["doctor", "m.onnx", "--no-onnx"],
    "export": ["export", "m.onnx", "-o", "x.onnx"],
    "masks": ["masks", "m.onnx"],
    "diff": ["diff", "m.onnx", "n.onnx", "--all", "--no-latency"],
    "diff json": ["diff", "m.onnx", "n.onnx", "--all", "--no-latency", "--json"],
    "diff with latency": ["diff", "m.onnx", "unknown.onnx"],
    "view": ["view", "m.onnx", "--html", "x.html"],
    "view of a network": ["view", "m.pt", "--html", "x.html"],
    "inspect unknown": ["inspect", "unknown.onnx"],
    "inspect damaged": ["inspect", "damaged.onnx"],
    "lottery": ["lottery", "m.onnx", "--data", "digits", "-o", "runs", "--dry-run"],
    "mimic": ["mimic", "--teacher", "m.onnx", "--student", "m.onnx", "--data", "digits", "-o", "x.pt", "--dry-run"],
    "merge": ["merge", "m.onnx", "m.onnx", "--data", "digits", "-o", "x.pt", "--dry-run"],
    "slim": ["slim", "m.onnx", "--data", "digits", "-o", "x.pt", "--dry-run"],
    "supermask": ["supermask", "m.onnx", "--data", "digits", "-o", "x.pt", "--dry-run"],
    "grow": ["grow", "m.onnx", "--data", "digits", "-o", "x.pt", "--dry-run"],
    "widths": ["widths", "m.onnx", "--data", "digits"],
    "train": ["train", "m.onnx", "--data", "digits", "-o", "x.pt"],
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile("m.onnx")
    hostile("n.onnx", operator="Sigmoid")
    hostile("unknown.onnx", operator=BAD)
    model = onnx.load("m.onnx")
    del model.graph.node[2].input[1:]
    onnx.save(model, "damaged.onnx")
    save(open_model("m.onnx"), "m.pt", note=BAD)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_writes_them_as_they_are(files, capfd, name):
    code = run(COMMANDS[name])
    streams = capfd.readouterr()
    assert code in (0, 1, 2, 3), streams.err
    assert "Traceback" not in streams.err
    assert_safe(streams.out)
    assert_safe(streams.err)
    if name.endswith("json"):
        assert isinstance(json.loads(streams.out), dict)
    page = files / "x.html"
    if page.exists():
        assert_safe(page.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("files")
def test_names_in_brackets_are_no_markup(capfd):
    assert run(["diff", "m.onnx", "n.onnx", "--all", "--no-latency"]) == 0
    assert "[red]one" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 字", "plain é 字"),
        ("a\x1b[2Jb", "a\ufffd[2Jb"),
        ("a\nb\tc\u2028d\u00a0e", "a b c d e"),
        ("\u202eabc\u2066\u200f", "\ufffdabc\ufffd\ufffd"),
        ("\x85\x9b\x07\x7f\udc80", " \ufffd\ufffd\ufffd\ufffd"),
    ],
)
def test_what_may_be_shown(text, shown):
    assert visible(text) == shown
    assert str(SurgeryError(text)) == one_line(ValueError(text), 1000) == shown.strip()


def test_every_command_that_opens_a_file_is_among_them():
    from graphsurgery.cli import _COMMANDS

    assert {tokens[0] for tokens in COMMANDS.values()} == set(_COMMANDS) - {"demo", "data", "models"}


@pytest.mark.usefixtures("files")
def test_a_document_has_the_names_as_they_are(capfd):
    assert run(COMMANDS["diff json"]) == 0
    nodes = json.loads(capfd.readouterr().out)["nodes"]
    assert nodes[0]["before"]["name"] == f"{BAD}one"

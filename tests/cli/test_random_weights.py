"""Weights that nobody has trained are said to be random, by every command that opens them as they are."""

import json

import pytest

from graphsurgery.cli import run
from graphsurgery.models.specs import trained_instead

SPEC = "paper/cnn?width=3"
OPENING = {
    "inspect": ["inspect", SPEC],
    "compress": ["compress", SPEC, "--keep", "0.5", "-o", "x.pt"],
    "compress --dead": ["compress", SPEC, "--dead", "-o", "x.pt"],
    "compress --data": ["compress", SPEC, "--keep", "0.5", "--data", "digits", "--device", "cpu", "-o", "x.pt"],
    "widen": ["widen", SPEC, "--by", "2x", "-o", "x.pt"],
    "deepen": ["deepen", SPEC, "--after", "auto", "-o", "x.pt"],
    "factorize": ["factorize", SPEC, "--rank", "0.3", "-o", "x.pt"],
    "merge": ["merge", "a.pt", SPEC, "--data", "digits", "-o", "x.pt", "--dry-run"],
    "grow": ["grow", SPEC, "--by", "2x", "--data", "digits", "-o", "x.pt", "--dry-run"],
    "mimic": ["mimic", "--teacher", SPEC, "--student", "paper/mlp", "--data", "digits", "-o", "x.pt", "--dry-run"],
    "masks": ["masks", SPEC],
    "masks --apply": ["masks", "a.pt", "--apply", SPEC, "-o", "x.pt"],
    "export": ["export", SPEC, "-o", "x.onnx"],
    "view": ["view", SPEC, "--html", "x.html"],
    "doctor": ["doctor", SPEC, "--no-onnx"],
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", OPENING)
def test_random_weights_are_said_to_be_random(capsys, name):
    assert run(OPENING[name]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert [note.split()[1] for note in notes if "its weights are random; for trained ones give" in note] == [
        f"{SPEC}:"
    ]
    assert run([*OPENING[name], "--json", *(["--overwrite"] if "-o" in OPENING[name] or name == "view" else [])]) == 0
    assert list(json.loads(capsys.readouterr().out)["random_weights"]) == [SPEC]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "tokens",
    [
        ["inspect", "a.pt"],
        ["inspect", "nets.py:other"],
        ["train", SPEC, "--data", "digits", "-o", "x.pt", "--dry-run"],
        ["slim", SPEC, "--data", "digits", "-o", "x.pt", "--dry-run"],
        ["lottery", SPEC, "--data", "digits", "-o", "x", "--dry-run"],
        ["widen", "a.pt", "--like", "paper/cnn?width=5", "-o", "x.pt"],
    ],
    ids=lambda tokens: " ".join(tokens[:2]),
)
def test_trained_weights_and_those_that_will_be_are_not(capsys, tokens):
    assert run([*tokens, "--json"]) == 0
    assert "random_weights" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("spec", "better"),
    [
        ("torchvision/resnet18", "torchvision/resnet18?weights=DEFAULT"),
        ("torchvision/resnet18?num_classes=7", "torchvision/resnet18?num_classes=7&weights=DEFAULT"),
        ("torchvision/resnet18?weights=none", "torchvision/resnet18?weights=DEFAULT"),
        ("torchvision/resnet18?weights=DEFAULT", None),
        ("timm/resnet10t", "timm/resnet10t?pretrained=true"),
        ("timm/resnet10t?pretrained=true", None),
        ("timm/resnet10t?pretrained=false", "timm/resnet10t?pretrained=true"),
        ("nets.py:other", None),
        ("nowhere", None),
    ],
)
def test_what_to_give_for_trained_weights(spec, better):
    assert trained_instead(spec) == better

"""The command that shows, compares, joins and applies masks."""

import json
import re

import pytest
import torch

import graphsurgery as gs
from graphsurgery.cli import run
from graphsurgery.passes.mask import mask
from graphsurgery.surgery.masks.mask_set import MaskSet


@pytest.fixture
def tickets(here):
    """Three tickets of one network with their masks, of unequal densities."""
    graph = gs.load("a.pt")
    found = []
    for number, density in enumerate((0.2, 0.4, 0.6)):
        generator = torch.Generator().manual_seed(number)
        masks = MaskSet({n: torch.rand(m.shape, generator=generator) < density for n, m in MaskSet.ones(graph).items()})
        gs.save(mask(graph, masks), here / f"ticket{number}.pt", masks=masks.as_dict())
        found.append(masks)
    return found


def test_one_mask_by_layers(tickets, capsys):
    assert run(["masks", "ticket0.pt"]) == 0
    shown = capsys.readouterr().out
    assert f"ticket0.pt: {tickets[0].kept:,} of {tickets[0].total:,} weights live" in shown
    assert all(re.search(rf"{name} +\S+ +{share:.2%}", shown) for name, share in tickets[0].densities.items())
    assert shown.splitlines()[-1] == "next       graphsurgery compress ticket0.pt --dead -o small.pt"


def test_two_masks_are_compared_by_layers(tickets, capsys):
    a, b = tickets[:2]
    assert run(["masks", "ticket0.pt", "ticket1.pt"]) == 0
    shown = capsys.readouterr().out
    assert f"agree      on {1 - a.hamming(b):.2%} of the weights" in shown
    assert re.search(rf"head.weight .* {a.compared(b)['head.weight'].iou:.2%} ", shown)
    assert run(["masks", "ticket0.pt", "ticket1.pt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"][0]["iou"] == pytest.approx(a.iou(b))
    assert found["pairs"][0]["chance"] == pytest.approx(a.iou_by_chance(b))
    assert found["layers"]["head.weight"]["hamming"] == pytest.approx(a.compared(b)["head.weight"].hamming)


def test_many_masks_are_compared_in_pairs(tickets, capsys):
    assert run(["masks", "ticket0.pt", "ticket1.pt", "ticket2.pt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [pair["between"] for pair in found["pairs"]] == [
        [f"ticket{i}.pt", f"ticket{k}.pt"] for i, k in ((0, 1), (0, 2), (1, 2))
    ]
    assert found["pairs"][2]["hamming"] == pytest.approx(tickets[1].hamming(tickets[2]))
    assert [one["density"] for one in found["sources"]] == [masks.density for masks in tickets]


def test_joined_masks_are_written_and_put_on_a_network(tickets, capsys):
    a, b, c = tickets
    names = ["ticket0.pt", "ticket1.pt", "ticket2.pt"]
    assert run(["masks", *names, "--join", "union", "-o", "any.json"]) == 0
    assert f"union      {(a | b | c).kept:,} of" in capsys.readouterr().out
    assert run(["masks", *names, "--join", "intersection", "-o", "all.json"]) == 0
    assert (MaskSet.load("any.json"), MaskSet.load("all.json")) == (a | b | c, a & b & c)
    assert run(["masks", "all.json", "--apply", "b.pt", "-o", "masked.pt"]) == 0
    masked = gs.load("masked.pt")
    assert MaskSet.nonzero(masked) == a & b & c
    expected, x = mask(gs.load("b.pt"), a & b & c), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(masked(x), expected(x))


@pytest.mark.usefixtures("tickets")
def test_a_mask_goes_into_an_onnx_file(capsys):
    assert run(["export", "b.pt", "-o", "b.onnx"]) == 0
    capsys.readouterr()
    assert run(["masks", "ticket1.pt", "--apply", "b.onnx", "-o", "proved.onnx", "--rtol", "0.01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["onnx"]["allowed"] == 0.01
    assert run(["masks", "ticket1.pt", "--apply", "b.onnx", "-o", "masked.onnx"]) == 0
    shown = capsys.readouterr().out
    assert "ONNX Runtime = PyTorch" in shown
    assert "PASS" in shown
    assert run(["masks", "masked.onnx", "ticket1.pt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"][0]["hamming"] == 0.0


BAD = {
    "one to join": (["a.pt", "--join", "union"], r"masks: --join union wants two masks or more"),
    "no file": (["a.pt", "--apply", "b.pt"], r"masks: --apply wants a file to write; give -o masked.pt"),
    "which": (["a.pt", "b.pt", "-o", "masks.json"], r"which of them shall be written\? Give --join"),
    "no json": (["a.pt", "-o", "masks.pt"], r"masks.pt: masks alone are a .json file; give --apply MODEL"),
    "json": (["a.pt", "--apply", "b.pt", "-o", "m.json"], r"m.json: a network is no .json file; give -o m.pt"),
    "no folder": (["a.pt", "-o", "none/masks.json"], r"its folder does not exist"),
    "nothing to prove": (
        ["a.pt", "--rtol", "0.1"],
        r"masks: --rtol says how an .onnx file is proved; give --apply m.onnx",
    ),
    "into onnx": (["a.pt", "--apply", "b.pt", "-o", "b.onnx"], r"b.onnx: only what was an .onnx file"),
    "unlike": (["a.pt", "other.pt"], r"masks: .* they belong to another architecture"),
    "another network": (["a.pt", "--apply", "other.pt", "-o", "m.pt"], r"the masks belong to another architecture"),
    "missing": (["none.pt"], r"none.pt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_masks_are_one_line(case, fails):
    options, message = BAD[case]
    code, line = fails("masks", *options)
    assert code == 2
    assert re.search(message, line)

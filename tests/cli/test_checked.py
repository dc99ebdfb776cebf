"""Every command that writes a network has checked its pass on that network."""

import contextlib
import shutil

import pytest
import torch

import graphsurgery as gs
from graphsurgery import cli
from graphsurgery.passes import factorize
from graphsurgery.passes.compress import compress
from graphsurgery.recipes.lottery import lottery as tickets
from graphsurgery.recipes.merging import work
from graphsurgery.recipes.slimming import slimmable
from graphsurgery.surgery.remapping import remap

SHORT = ("--data", "digits?train=200", "--device", "cpu", "--epochs", "1")
MERGE = (
    "merge",
    "a.pt",
    "b.pt",
    "--by",
    "joint",
    "--no-control",
    "--data",
    "digits",
    "--device",
    "cpu",
    "--epochs",
    "1",
)
GROW = ("grow", "a.pt", "--by", "1.5x", "--no-control", *SHORT)
MIMIC = ("mimic", "--teacher", "a.pt", "--student", "paper/mlp?hidden=20", "--bottleneck", "4", "--no-control", *SHORT)
LOTTERY = ("lottery", "a.pt", "--rounds", "1", "--density", "0.5", *SHORT)
SUPERMASK = ("supermask", "paper/lenet_300_100?in_features=64", *SHORT)
MASKED = ("masks", "m.pt", "--apply", "a.pt")
COMMANDS = {
    "compress by share": (("compress", "a.pt", "--keep", "0.5"), "cut = reads masked"),
    "compress a space": (("compress", "a.pt", "--keep-space", "conv1=2"), "cut = reads masked"),
    "compress to a target": (("compress", "a.pt", "--target", "params=0.5x"), "cut = reads masked"),
    "compress with data": (("compress", "a.pt", "--keep", "0.5", "--data", "digits"), "cut = reads masked"),
    "compress dead": (("compress", "m.pt", "--dead"), "compressed = masked"),
    "widen": (("widen", "a.pt", "--by", "1.5x"), "grown = original"),
    "deepen": (("deepen", "a.pt", "--after", "auto"), "grown = original"),
    "factorize back": (("factorize", "f.pt", "--back"), "multiplied back = with factors"),
    "masks": (MASKED, "masked = weights zeroed"),
}
RECIPES = {
    "grow": (GROW, "grown = original"),
    "mimic": (MIMIC, "multiplied back = with bottleneck"),
    "slim": (("slim", "a.pt", *SHORT), "channels in order = original"),
    "merge": (MERGE, "concatenated = mean of the parents"),
    "supermask": (SUPERMASK, "drawn by the seed and masked = measured"),
    "lottery": (LOTTERY, "dead weights = what the mask makes of them"),
}


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """a.pt and b.pt, a masked m.pt with a dead channel, and f.pt of factors."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(trained / "a.pt", folder)
    shutil.copy(trained / "b.pt", folder)
    graph = gs.load(folder / "a.pt")
    gs.save(factorize.factorize(graph, rank=0.5), folder / "f.pt")
    with torch.no_grad():
        first = next(p for p in graph.module.parameters() if p.dim() == 4)
        first[0] = 0
    gs.save(graph, folder / "m.pt")
    return folder


@pytest.fixture
def at(made, monkeypatch):
    monkeypatch.chdir(made)
    yield made
    shutil.rmtree(made / "new.pt") if (made / "new.pt").is_dir() else (made / "new.pt").unlink(missing_ok=True)


@pytest.mark.parametrize("case", COMMANDS | RECIPES)
def test_it_says_so(case, at, capsys):
    tokens, name = (COMMANDS | RECIPES)[case]
    assert cli.run([*tokens, "-o", "new.pt"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if name in line]
    assert len(lines) == 1
    assert lines[0].endswith("PASS")
    assert (at / "new.pt").exists()


@pytest.mark.parametrize("case", COMMANDS)
def test_a_pass_that_is_wrong_writes_nothing(case, at, capsys, monkeypatch):
    tokens, name = COMMANDS[case]
    spoil_the_next_network(monkeypatch)
    assert cli.run([*tokens, "-o", "new.pt"]) == 1
    captured = capsys.readouterr()
    assert "FAIL" in captured.out
    assert f"{name}: " in captured.err
    assert "nothing was written" in captured.err
    assert not (at / "new.pt").exists()


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_ends_where_a_pass_is_wrong(case, at, capsys, monkeypatch):
    tokens, name = RECIPES[case]
    spoil_the_next_network(monkeypatch)
    # Dead weights are trained like the others, as if there were no mask.
    monkeypatch.setattr(tickets, "masked", lambda graph, *_: contextlib.nullcontext(graph.module))
    assert cli.run([*tokens, "-o", "new.pt"]) == 1
    found = capsys.readouterr().err.splitlines()[-1]
    assert found.startswith(f"error  {name}: ")
    assert found.endswith("; nothing was written")
    assert not list(at.glob("new.pt/seed-*/*.pt")) if case == "lottery" else not (at / "new.pt").exists()


CUTS = {"merge": "cut = reads masked: ", "slim": "slim at width 0.25 = compressed to the first channels: "}


@pytest.mark.parametrize("case", CUTS)
def test_the_cut_behind_a_training_is_checked(case, at, capsys, monkeypatch):
    tokens, name = RECIPES[case][0], CUTS[case]
    module = work if case == "merge" else slimmable

    def spoilt(*args, **options):
        small = compress(*args, **options)
        with torch.no_grad():
            next(small.module.parameters()).add_(1)
        return small

    monkeypatch.setattr(module, "compress", spoilt)
    assert cli.run([*tokens, "-o", "new.pt"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error  {name}")
    assert not (at / "new.pt").exists()


def spoil_the_next_network(monkeypatch):
    """The last layer of every rebuilt network has another weight than it should."""
    assembled = remap.assembled

    def spoilt(*args):
        module = assembled(*args)
        with torch.no_grad():
            last = [p for p in module.parameters() if p.dim() > 1][-1]
            last += last.abs().max()
        return module

    monkeypatch.setattr(remap, "assembled", spoilt)

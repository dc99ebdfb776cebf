"""Every command that writes a network has checked its pass on that network."""

import shutil

import pytest
import torch

import graphsurgery as gs
from graphsurgery import cli
from graphsurgery.passes import factorize
from graphsurgery.surgery import remap

MASKED = ("masks", "m.pt", "--apply", "a.pt")
COMMANDS = {
    "compress by share": (("compress", "a.pt", "--keep", "0.5"), "cut = reads masked"),
    "compress a space": (("compress", "a.pt", "--keep-space", "conv1=2"), "cut = reads masked"),
    "compress to a target": (("compress", "a.pt", "--target", "params=0.5x"), "cut = reads masked"),
    "compress with data": (("compress", "a.pt", "--keep", "0.5", "--data", "digits"), "cut = reads masked"),
    "compress dead": (("compress", "m.pt", "--dead"), "compressed = masked"),
    "widen": (("widen", "a.pt", "--by", "1.5x"), "grown = original"),
    "deepen": (("deepen", "a.pt", "--where", "auto"), "grown = original"),
    "factorize back": (("factorize", "f.pt", "--back"), "multiplied back = with factors"),
    "masks": (MASKED, "masked = weights zeroed"),
}


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """a.pt, a masked m.pt with a dead channel, and f.pt of factors."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(trained / "a.pt", folder)
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
    (made / "new.pt").unlink(missing_ok=True)


@pytest.mark.parametrize("case", COMMANDS)
def test_it_says_so(case, at, capsys):
    tokens, name = COMMANDS[case]
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

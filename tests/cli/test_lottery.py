"""The commands of lottery tickets and supermasks."""

import json
import re

import pytest

import graphsurgery as gs
from graphsurgery.cli import run
from graphsurgery.passes.mask import mask
from graphsurgery.surgery.masks.mask_set import MaskSet

SPEC = "paper/lenet_300_100?in_features=64"
COMMON = ["--data", "digits?train=300", "--epochs", "1", "--device", "cpu"]
LOTTERY = ["lottery", SPEC, *COMMON, "--rounds", "2", "--density", "0.2", "-o", "tickets"]


@pytest.mark.usefixtures("here")
def test_lottery_writes_tickets_a_table_and_a_plot(here, capsys):
    assert run([*LOTTERY, "--seeds", "2", "--control", "reinit", "--kept", "rewind", "--control-rounds", "2"]) == 0
    shown = capsys.readouterr().out
    assert "±" in shown
    assert "reinit:" in shown
    assert shown.splitlines()[-1].split()[:3] == ["next", "graphsurgery", "compress"]
    files = {str(file.relative_to(here / "tickets")) for file in (here / "tickets").rglob("*.*")}
    assert {"lottery.md", "lottery.svg", "lottery.json", "seed-0/round-01.pt", "seed-1/round-02.pt"} <= files
    assert MaskSet.nonzero(gs.load("tickets/seed-1/round-02.pt")).density == pytest.approx(0.2, abs=0.01)
    points = json.loads((here / "tickets/lottery.json").read_text())["points"]
    assert [(p["seed"], p["round"], p["name"]) for p in points] == [
        (seed, number, name)
        for seed in (0, 1)
        for number, name in ((0, "ticket"), (1, "ticket"), (2, "ticket"), (2, "reinit"))
    ]


@pytest.mark.usefixtures("here")
def test_lottery_resumes_in_its_folder(capsys):
    assert run([*LOTTERY, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert run([*LOTTERY, "--json"]) == 0
    streams = capsys.readouterr()
    assert "epoch" not in streams.err
    assert json.loads(streams.out)["lottery"]["points"] == first["lottery"]["points"]


@pytest.mark.usefixtures("here")
def test_lottery_takes_a_checkpoint_and_refuses_to_go_on_with_another(here, capsys):
    command = ["lottery", "mine.pt", *COMMON, "--rounds", "1", "--density", "0.2", "-o", "tickets", "--seeds", "1"]
    (here / "mine.pt").write_bytes((here / "a.pt").read_bytes())
    assert run(command) == 0
    ticket = gs.load("tickets/seed-0/round-01.pt")
    assert [record["pass"] for record in ticket.lineage] == ["trace", "train", "lottery"]
    (here / "mine.pt").write_bytes((here / "b.pt").read_bytes())
    capsys.readouterr()
    assert run(command) == 2
    assert "holds a run with contents.mine.pt = " in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_lottery_says_what_it_would_do(here, capsys):
    assert run([*LOTTERY, "--dry-run"]) == 0
    assert "would train 3 times for 1 epochs and write tickets" in capsys.readouterr().out
    assert not (here / "tickets").exists()


@pytest.mark.usefixtures("here")
def test_one_training_option_leaves_the_others_as_this_command_has_them(capsys):
    command = ["lottery", SPEC, "--data", "digits?train=300", "-o", "tickets", "--dry-run", "--json"]
    plans = []
    for options in ([], ["--device", "cpu", "--seed", "3", "--linear-rate", "0.5"]):
        assert run([*command, *options]) == 0
        plans.append(json.loads(capsys.readouterr().out)["plan"])
    assert plans[1]["training"] == {**plans[0]["training"], "device": "cpu", "seed": 3}
    assert plans[0]["training"]["optimizer"] == "adam"
    assert plans[1]["selection"] == {**plans[0]["selection"], "seed": 3, "linear": 0.5}


BAD = {
    "density": (["--density", "1e-9"], r"selection: fc1.weight has"),
    "criterion": (["--criterion", "best"], r"criterion 'best' is unknown; choose from large_final"),
    "control": (["--control", "luck"], r"control 'luck' is unknown"),
    "file": (["-o", "a.pt"], r"a.pt: is a file, expected the name of a folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lotteries_are_one_line(case, fails):
    options, message = BAD[case]
    command = [token for token in LOTTERY if not ("-o" in options and token in ("-o", "tickets"))]
    if case == "density":
        command = [*command[: command.index("--density")], *command[command.index("--density") + 2 :], "--dry-run"]
    code, line = fails(*command, *options)
    assert code == 2
    assert re.search(message, line)


@pytest.fixture
def ticket(here):
    """A network with channels of zeros."""
    graph = gs.load("a.pt")
    masks = MaskSet.ones(graph)
    masks["conv2.weight"][:3] = False
    masks["head.weight"][:, :2] = False
    gs.save(mask(graph, masks), here / "ticket.pt")
    return "ticket.pt"


def test_compress_dead_keeps_masked_and_compressed_apart(ticket, capsys):
    assert run(["compress", ticket, "--dead", "-o", "small.pt"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.startswith(("masked", "compressed"))}
    assert set(rows) == {"masked", "compressed"}
    assert "compressed = masked" in shown
    assert "PASS" in shown
    assert run(["compress", ticket, "--dead", "-o", "small.pt", "--json", "--overwrite"]) == 0
    found = json.loads(capsys.readouterr().out)["dead"]
    assert found["compressed"]["parameters"] < found["masked"]["parameters"]
    assert found["compressed"]["onnx_bytes"] < found["masked"]["onnx_bytes"]
    assert found["masked"]["living"] < found["masked"]["weights"]
    assert gs.load("small.pt").lineage[-1]["pass"] == "prune dead"


def test_compress_dead_takes_nothing_else(ticket, capsys):
    assert run(["compress", ticket, "--dead", "--keep", "0.5", "-o", "small.pt"]) == 2
    assert "--dead changes no output and takes no other choice" in capsys.readouterr().err


MASK = ["supermask", SPEC, *COMMON, "-o", "mask.pt"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("method", ["learned", "top-k", "heuristic"])
def test_supermask_writes_a_small_file_that_opens_as_a_network(here, method, capsys):
    criterion = ["--criterion", "large_final"] if method == "heuristic" else []
    assert run([*MASK, "--method", method, *criterion, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == (here / "mask.pt").stat().st_size < 50_200 / 8 + 4000
    assert run(["export", "mask.pt", "-o", "mask.onnx"]) == 0
    assert "PASS" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_supermask_states_the_size_and_what_it_would_do(here, capsys):
    assert run([*MASK, "--dry-run"]) == 0
    assert "50,200 in 3 tensors; a bit for each is 6.28 kB" in capsys.readouterr().out
    assert not (here / "mask.pt").exists()
    assert run([*MASK, "--run", "states"]) == 0
    shown = capsys.readouterr().out
    assert "kB; the weights would take 201 kB" in shown
    assert all(word in shown for word in ("sampled", "averaged", "thresholded"))


def test_a_supermask_of_a_file_is_refused(fails):
    code, line = fails("supermask", "a.pt", *COMMON, "-o", "mask.pt")
    assert code == 2
    assert re.search(r"supermask: a.pt is a file, .* give a model spec, or prune the weights of the file with", line)


def test_bad_supermasks_are_one_line(fails):
    code, line = fails(*MASK, "--method", "top-k", "--density", "0")
    assert (code, "density is 0, expected a share" in line) == (2, True)

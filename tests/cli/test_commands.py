"""What each command writes and prints when all goes well."""

import json
import re
import sys

import pytest
import torch
from forked import Forked

import graphsurgery as gs
from graphsurgery.checkpoint import read_metadata
from graphsurgery.cli import run
from graphsurgery.cli.output import in_few_lines
from graphsurgery.recipes.contracts import contract as contracts
from graphsurgery.training.loop.run import read_metrics

SPEC = "paper/cnn?width=3"


def document(capsys):
    """The JSON document, which is all that may stand on standard output."""
    return json.loads(capsys.readouterr().out)


def last_line(capsys):
    return capsys.readouterr().out.splitlines()[-1]


def test_train_tells_how_the_network_was_trained(here):
    found = read_metadata(here / "a.pt")
    assert (found["spec"], found["data"], found["plan"]["epochs"]) == (SPEC, "digits", 1)
    assert set(found["metrics"]["test"]) == {"loss", "accuracy"}
    record = gs.load(here / "a.pt").lineage[-1]
    assert (record["pass"], record["spec"], record["plan"]["seed"]) == ("train", SPEC, 0)


@pytest.mark.usefixtures("here")
def test_train_resumes_from_its_run_folder(capsys):
    command = ["train", SPEC, "--data", "digits", "--epochs", "1", "--run", "runs", "--device", "cpu"]
    assert run([*command, "-o", "c.pt"]) == 0
    streams = capsys.readouterr()
    assert "train epoch 1/1" in streams.err
    assert streams.out.splitlines()[-1].split() == ["next", "graphsurgery", "inspect", "c.pt"]
    assert run([*command, "-o", "d.pt"]) == 0
    assert "epoch 1/1" not in capsys.readouterr().err
    torch.testing.assert_close(gs.load("c.pt").module.state_dict(), gs.load("d.pt").module.state_dict(), rtol=0, atol=0)


def test_train_on_two_processes_writes_once(here, monkeypatch):
    """As README starts them: one checkpoint, one run folder, and one document on standard output."""
    from accelerate.commands.launch import main as launch

    launcher = ["launch", "--cpu", "--num_processes", "2"]
    command = ["-m", "graphsurgery", "train", "paper/mlp", "--data", "sine", "-o", "m.pt", "--run", "two"]
    options = ["--epochs", "1", "--batch-size", "500", "--lr", "0.01", "--device", "cpu", "--json"]
    monkeypatch.setattr(sys, "argv", [*launcher, *command, *options])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Forked(launch, "document", "errors") as process:
        assert process.wait() == 0, (here / "errors").read_text()
    assert json.loads((here / "document").read_text())["files"] == {"network": "m.pt"}
    assert [record["epoch"] for record in read_metrics(here / "two")] == [1]
    assert gs.load(here / "m.pt").spaces[0].size == 100


def test_train_says_what_was_split_off(here, capsys):
    make = "TensorDataset(torch.ones(40, 1, 8, 8), torch.arange(40) % 10)"
    (here / "d.py").write_text(f"import torch\nfrom torch.utils.data import *\ndef f():\n    return {make}\n")
    command = ["train", SPEC, "--data", "d.py:f", "--epochs", "1", "--device", "cpu"]
    words = "32 train, 4 validation (split off train), 4 test (split off train)"
    assert run([*command, "-o", "c.pt"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"data       d.py:f: {words}"
    assert run([*command, "-o", "d.pt", "--json"]) == 0
    assert document(capsys)["splits"] == {"d.py:f": words}


@pytest.mark.usefixtures("here")
def test_inspect_lists_spaces(capsys):
    assert run(["inspect", "a.pt", "--json"]) == 0
    found = document(capsys)
    assert [space["size"] for space in found["spaces"]] == [s.size for s in gs.load("a.pt").spaces]
    assert found["cost"]["parameters"] == sum(p.numel() for p in gs.load("a.pt").module.parameters())
    assert run(["inspect", "a.pt"]) == 0
    shown = capsys.readouterr().out
    assert all(space["name"] in shown for space in found["spaces"])


@pytest.mark.usefixtures("here")
def test_inspect_says_what_is_held_in_few_lines(capsys):
    assert run(["inspect", "a.pt"]) == 0
    held = [line for line in capsys.readouterr().out.splitlines() if line.startswith("held ")]
    assert 1 <= len(held) <= 4
    assert all(len(line) <= 80 for line in held)
    assert any(line.endswith(": axes of outputs") for line in held)
    assert any(line.endswith(": axes of inputs, constants or positions") for line in held)


def test_reasons_in_few_lines():
    named = {"short": ["a"], "of many": [f"layer{n}.weight" for n in range(30)], "long" * 20: ["b", "c"], "x": ["d"]}
    lines = in_few_lines(named, most=3)
    assert lines[0] == "a: short"
    assert lines[1] == "layer0.weight, layer1.weight, layer2.weight, … 27 more: of many"
    assert lines[2] == "… 2 more reasons; see --json"
    assert in_few_lines(named)[2] == "b, … 1 more: " + "long" * 20


def test_inspect_takes_a_state_dict_with_its_architecture(capsys):
    from graphsurgery.models import build

    torch.save({"state_dict": build(SPEC).state_dict()}, "weights.pt")
    assert run(["inspect", "weights.pt", "--arch", SPEC, "--input", "1x8x8", "--json"]) == 0
    assert document(capsys)["inputs"] == [{"name": "x", "shape": [1, 8, 8]}]


@pytest.mark.usefixtures("here")
def test_compress_without_data(capsys):
    assert run(["compress", "a.pt", "--keep", "0.5", "-o", "small.pt"]) == 0
    assert last_line(capsys).split()[:3] == ["next", "graphsurgery", "export"]
    old, new = gs.load("a.pt"), gs.load("small.pt")
    assert [s.size for s in new.spaces] == [max(1, round(s.size / 2)) for s in old.spaces]


@pytest.mark.usefixtures("here")
def test_compress_one_space():
    name = gs.load("a.pt").spaces[1].name
    assert run(["compress", "a.pt", "--keep-space", f"{name}=2", "-o", "small.pt", "--quiet"]) == 0
    old, new = gs.load("a.pt"), gs.load("small.pt")
    assert [s.size for s in new.spaces] == [2 if s.name == name else s.size for s in old.spaces]


@pytest.mark.usefixtures("here")
def test_compress_to_a_target(capsys):
    old = gs.load("a.pt")
    name = old.spaces[1].name
    target = ["--target", "params=0.6x", "--ranking", "global", "--min-width", "2", "--keep-space", f"{name}=4"]
    assert run(["compress", "a.pt", *target, "-o", "small.pt", "--json"]) == 0
    found, new = document(capsys), gs.load("small.pt")
    assert (found["target"], found["reached"]) == ("params=0.6x", found["after"]["parameters"])
    assert 0.5 < found["reached"] / found["before"]["parameters"] <= 0.6
    assert found["sizes"] == {
        s.name: [s.size, new.space(s.name).size] for s in (old.spaces[1], old.spaces[0], old.spaces[2])
    }
    assert found["sizes"][name][1] == 4
    assert found["cut"]["target"]["ranking"] == "global"


@pytest.mark.usefixtures("here")
def test_a_dry_run_shows_the_plan_and_the_target(capsys):
    assert run(["compress", "a.pt", "--target", "macs=0.5x", "-o", "small.pt", "--dry-run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = {words[0]: words[1:3] for words in lines[1:4]}
    old = gs.load("a.pt")
    assert {name: int(before) for name, (before, _) in shown.items()} == {s.name: s.size for s in old.spaces}
    assert all(int(after) < int(before) for before, after in shown.values())
    assert ["target", "macs=0.5x:"] in [words[:2] for words in lines]


@pytest.mark.usefixtures("here")
def test_compress_inside_groups(capsys):
    spec = "nets.py:groups"
    assert (
        run(["compress", spec, "--input", "3x8x8", "--keep", "0.5", "--within", "each", "-o", "g.pt", "--dry-run"]) == 0
    )
    shown = capsys.readouterr().out
    assert "others in each group" in shown
    assert run(["compress", spec, "--input", "3x8x8", "--keep", "0.5", "--within", "each", "-o", "g.pt", "--json"]) == 0
    found = document(capsys)
    small = gs.load("g.pt")
    conv = small.module.get_submodule("1")
    assert (conv.groups, conv.in_channels, conv.out_channels) == (3, 6, 6)
    assert found["sizes"] == {"0:2": [4, 2], "1": [4, 2]}


@pytest.mark.usefixtures("here")
def test_compress_with_data_measures_every_step(capsys):
    command = ["compress", "a.pt", "--keep", "0.7", "--data", "digits", "--epochs", "1", "-o", "small.pt", "--json"]
    assert run([*command, "--importance", "taylor", "--device", "cpu"]) == 0
    found = document(capsys)
    assert [row["name"] for row in found["outcome"]["rows"]] == ["original", "cut", "recalibrated", "fine-tuned"]
    assert found["outcome"]["config"]["training"]["lr"] == pytest.approx(0.01)
    assert found["after"]["parameters"] < found["before"]["parameters"]


CUTS = {
    "data": (["a.pt", "--keep", "0.7", "--data", "digits", "--device", "cpu"], ["original", "cut", "recalibrated"]),
    "no data": (["a.pt", "--keep", "0.7"], ["original", "cut"]),
    "dead": (["a.pt", "--dead"], ["masked", "compressed"]),
}


@pytest.mark.parametrize("case", CUTS)
def test_compress_writes_network_onnx_and_report(here, capsys, case):
    tokens, names = CUTS[case]
    assert run(["compress", *tokens, "-o", "small.pt", "--onnx", "s.onnx", "--report", "r.html", "--json"]) == 0
    found = document(capsys)
    assert found["files"] == {"network": "small.pt", "onnx": "s.onnx", "report": "r.html"}
    rows = {row["name"]: row for row in found["outcome"]["rows"]}
    assert list(rows) == names
    assert rows[names[0]]["latency"] > 0 < rows[names[-1]]["latency"]
    assert found["outcome"]["checks"][-1]["name"] == "ONNX Runtime = PyTorch"
    assert gs.check_onnx(gs.load("small.pt"), "s.onnx").holds
    page = (here / "r.html").read_text()
    words = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page))
    assert f"graphsurgery compress {' '.join(tokens)} -o small.pt" in words
    assert 'href="./s.onnx"' in page
    assert all(f"{check['name']} " in words for check in found["outcome"]["checks"])
    assert len(found["outcome"]["checks"]) == 2
    assert ("the outputs move by" in words) == (case == "no data")


def test_what_is_cut_is_kept_where_its_export_fails(here, capsys, monkeypatch):
    """The checkpoint and the report are there first."""

    def failing(*_, **__):
        raise gs.UnsupportedError("no such operator")

    monkeypatch.setattr("graphsurgery.recipes.delivery.deliver.export_onnx", failing)
    files = ["-o", "small.pt", "--onnx", "s.onnx", "--report", "r.html"]
    assert run(["compress", "a.pt", "--keep", "0.7", *files]) == 3
    assert capsys.readouterr().err == "error  no such operator\n"
    assert sorted(path.name for path in here.iterdir() if "s" in path.name or "r.html" in path.name) == [
        *("nets.py", "r.html", "small.pt"),
    ]


@pytest.mark.parametrize(
    "command",
    [
        ["train", SPEC, "--data", "digits"],
        ["compress", "a.pt", "--keep", "0.5"],
        ["merge", "a.pt", "b.pt", "--data", "digits"],
    ],
    ids=lambda command: command[0],
)
def test_a_dry_run_writes_nothing(here, capsys, command):
    before = sorted(here.iterdir())
    assert run([*command, "-o", "new.pt", "--dry-run"]) == 0
    assert sorted(here.iterdir()) == before
    assert last_line(capsys).split("graphsurgery ")[1].startswith(command[0])


@pytest.mark.usefixtures("here")
def test_export_is_checked_and_timed(capsys):
    assert run(["export", "a.pt", "-o", "a.onnx", "--json"]) == 0
    found = document(capsys)
    assert list(found["check"]["deviations"])[:3] == ["batch 1", "batch 3", "batch 8"]
    assert found["latency"]["median"] > 0
    assert gs.check_onnx(gs.load("a.pt"), "a.onnx").holds


@pytest.mark.usefixtures("here")
def test_doctor_measures_every_contract(capsys):
    assert run(["doctor", "a.pt", "--json", "--no-onnx"]) == 0
    found = document(capsys)
    assert {contract["status"] for contract in found["contracts"]} == {"holds"}


@pytest.mark.usefixtures("here")
def test_doctor_fails_where_a_contract_does(capsys, monkeypatch):
    monkeypatch.setitem(contracts.TOLERANCES, "gates folded = gated", -1.0)
    assert run(["doctor", "a.pt", "--no-onnx"]) == 1
    streams = capsys.readouterr()
    assert streams.err == "error  a.pt: 1 of 13 contracts fail: gates folded = gated\n"
    assert "fails" in streams.out


@pytest.mark.usefixtures("here")
def test_merge_keeps_both_heads_and_reorders_classes(capsys):
    command = ["merge", "a.pt", "b.pt", "--data", "digits", "-o", "both.pt", "--wide-epochs", "1", "--epochs", "1"]
    heads = ["--heads", "both", "--tasks", "digits?split_seed=1", "--classes", "all/9,8,7,6,5,4,3,2,1,0"]
    assert run([*command, *heads, "--no-control", "--device", "cpu", "--json"]) == 0
    rows = [row["name"] for row in document(capsys)["outcome"]["rows"]]
    assert rows == ["parent of each task", "joint", "cut", "recalibrated", "merged"]
    both = gs.load("both.pt")
    assert [tuple(output.shape) for output in both(torch.zeros(2, 1, 8, 8))] == [(2, 10), (2, 10)]
    assert both.lineage[-1]["tasks"] == ["digits", "digits?split_seed=1"]


@pytest.mark.usefixtures("here")
def test_merge_prints_the_proof_of_the_file(capsys):
    command = ["merge", "a.pt", "b.pt", "--data", "digits", "-o", "merged.pt", "--onnx", "m.onnx", "--by", "average"]
    assert run([*command, "--no-control", "--device", "cpu"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "ONNX Runtime = PyTorch" in line)
    assert line.split()[0] == "check"
    assert line.endswith("allowed 1e-04  PASS")


def test_merge_writes_network_onnx_and_report(here, capsys):
    command = ["merge", "a.pt", "b.pt", "--data", "digits", "-o", "merged.pt", "--onnx", "m.onnx", "--report", "r.html"]
    options = ["--by", "gates", "--wide-epochs", "5", "--epochs", "1", "--no-control", "--device", "cpu", "--json"]
    code = run([*command, *options])
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["outcome"]["rows"]}
    assert code == (0 if all(c["measured"] <= c["allowed"] for c in found["outcome"]["checks"]) else 1)
    assert {"parent 1", "parent 2", "ensemble", "merged"} <= set(rows)
    assert not [name for name in rows if name.startswith("control")]
    assert rows["merged"]["latency"] > 0
    assert found["outcome"]["checks"][-1]["name"] == "ONNX Runtime = PyTorch"
    assert rows["merged"]["parameters"] == rows["parent 1"]["parameters"]
    assert gs.check_onnx(gs.load("merged.pt"), "m.onnx").holds
    page = (here / "r.html").read_text()
    assert "graphsurgery merge a.pt b.pt --data digits" in re.sub("<[^>]*>", "", page)
    assert 'href="./m.onnx"' in page
    assert page.count("last ") >= 2 * 4  # the curves of both parents, of the closing gates and of the fine-tuning

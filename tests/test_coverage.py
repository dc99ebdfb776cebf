"""The survey of networks: limits, going on after a kill, the choice of inputs, and the page."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch
import zoo
from forked import Forked
from torch import nn
from torchvision.models.segmentation import lraspp

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import coverage
import coverage_page
import examination
import surveying
from surveying import Limits, survey

WIDE = Limits(seconds=60, memory=4e9)
CHILD = """
import json, os, pathlib, sys, time
name, output, log = sys.argv[1:]
parent = os.getppid()
def wait():
    began = time.monotonic()
    while os.getppid() == parent and time.monotonic() - began < 60:
        time.sleep(0.05)
with open(log, "a") as file:
    file.write(name + "\\n")
if name == "slow":
    wait()
if name == "large":
    block = bytearray(400_000_000)
    wait()
if name == "broken":
    raise ValueError("no such network")
pathlib.Path(output).write_text(json.dumps({"name": name}))
"""


@pytest.fixture
def run(tmp_path):
    """Survey fake measurements with a cache, and say what was found and what was started."""

    def run(names, limits=WIDE, jobs=1, stamp=None):
        log = tmp_path / "log"
        log.write_text("")

        def command(name, output):
            return [sys.executable, "-c", CHILD, name, str(output), str(log)]

        found = survey(names, command, lambda name: tmp_path / "cache" / f"{name}.json", limits, jobs, stamp or {})
        return {name: document for name, document, _ in found}, log.read_text().split()

    return run


def test_a_second_run_measures_only_what_is_missing(run, tmp_path):
    first, started = run(["a", "b"], stamp={"sources": "x"})
    assert started == ["a", "b"]
    assert [d["name"] for d in first.values()] == ["a", "b"]
    assert all(d["sources"] == "x" and d["wall_seconds"] > 0 for d in first.values())
    again, started = run(["a", "b", "c"], jobs=3)
    assert started == ["c"]
    assert (again["a"], again["b"]) == (first["a"], first["b"])
    assert not list(tmp_path.rglob("*.part"))


def test_a_run_that_is_killed_goes_on_where_it_stopped(tmp_path):
    names = ["a", "slow", "b"]
    script = f"""
import sys
sys.path.insert(0, {str(Path(surveying.__file__).parent)!r})
from pathlib import Path
from surveying import Limits, survey
folder = Path({str(tmp_path)!r})
command = lambda name, output: [sys.executable, "-c", {CHILD!r}, name, str(output), str(folder / "log")]
for name, document, cached in survey({names}, command, lambda name: folder / name, Limits(60, 4e9)):
    print(name, flush=True)
"""
    with surveying.subprocess.Popen([sys.executable, "-c", script], stdout=surveying.subprocess.PIPE) as killed:
        assert killed.stdout.readline() == b"a\n"
        while (tmp_path / "log").read_text().split() != ["a", "slow"]:
            time.sleep(0.02)
        killed.kill()
    assert [path.name for path in tmp_path.iterdir() if path.name in names] == ["a"]

    def command(name, output):
        return [sys.executable, "-c", CHILD.replace("    wait()", "    pass"), name, str(output), str(tmp_path / "log")]

    found = list(survey(names, command, lambda name: tmp_path / name, WIDE))
    assert [(name, cached) for name, _, cached in found] == [("a", True), ("slow", False), ("b", False)]


def test_limits_stop_one_network_and_not_the_others(run):
    began = time.monotonic()
    found, _ = run(["slow", "a"], Limits(seconds=1, memory=4e9), jobs=2)
    assert found["slow"]["failure"] == "took longer than 1 s"
    assert found["a"]["name"] == "a"
    assert time.monotonic() - began < 30


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux only")
def test_memory_is_limited(run):
    found, _ = run(["large"], Limits(seconds=60, memory=2e8))
    assert found["large"]["failure"] == "took more than 0.2 GB of memory"
    assert found["large"]["peak_bytes"] > 2e8


def test_a_process_that_fails_says_why(run):
    found, _ = run(["broken"])
    assert found["broken"]["failure"] == "the process ended with exit code 1: ValueError: no such network"


FAKES = """
import time
from torch import nn

INPUT_SHAPE = (4,)

def small():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

def int8():
    raise ValueError("no int8")
"""


class ForkedScript:
    """As `subprocess.Popen` of the script that examines a network, without the seconds of its imports."""

    def __init__(self, command, *, stdout, stderr, start_new_session):
        assert command[:2] == [sys.executable, str(coverage.EXAMINATION)]
        assert (stdout, start_new_session) == (surveying.subprocess.DEVNULL, True)
        self._process = Forked(lambda: self._work(command[2:]), os.devnull, stderr.fileno())
        self.pid, self.returncode = self._process.pid, None

    @staticmethod
    def _work(arguments):
        os.setsid()
        examination.main(arguments)

    def poll(self):
        if self.returncode is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self.wait()
        return self.returncode

    def wait(self):
        if self.returncode is None:
            self.returncode = self._process.wait()


def test_the_script_measures_a_list_of_specs_and_remembers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(surveying.subprocess, "Popen", ForkedScript)
    (tmp_path / "fakes.py").write_text(FAKES)
    specs = [f"{tmp_path}/fakes.py:{name}" for name in ("small", "int8")]
    arguments = [*specs, "--no-onnx", "--jobs", "2", "--cache", str(tmp_path / "cache")]
    coverage.main(arguments)
    said = capsys.readouterr().out
    assert f"{specs[0]}: 95.5% editable, every contract holds" in said
    assert f"{specs[1]}: refused: " in said
    assert "1 of 2 without a finding" in said
    with monkeypatch.context() as nothing_starts:
        nothing_starts.setattr(surveying.subprocess, "Popen", None)
        coverage.main(arguments)
    assert "[" not in capsys.readouterr().out
    files = {path.name: path for path in (tmp_path / "cache").rglob("*.json")}
    documents = [json.loads(path.read_text()) for path in files.values()]
    assert len(documents) == 2
    monkeypatch.setattr(coverage, "survey", lambda names, *_: iter([(n, documents[0], False) for n in names]))
    coverage.main([*arguments, "--again"])
    assert [path.name for path in (tmp_path / "cache").rglob("*.json")] == [next(n for n in files if "small" in n)]


@pytest.mark.parametrize(
    "spec", ["torchvision/squeezenet1_1", "torchvision/lraspp_mobilenet_v3_large", "timm/test_vit"]
)
def test_every_contract_holds(spec, monkeypatch):
    monkeypatch.setattr(lraspp, "mobilenet_v3_large", lambda **_: zoo.FAMILIES["mobilenet_v3"][0]())  # shallower
    found = examination.examine_spec(spec, onnx=False)
    assert coverage_page.line(spec, {**found, "wall_seconds": 1}).endswith("editable, every contract holds, 1 s")
    assert found["editable"] > 0.99
    assert 0.2 < found["kept"] < 0.4
    assert not found["core"]


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ("torchvision/resnet18", [(3, 64, 64)]),
        ("torchvision/vit_b_32?image_size=96", [(3, 96, 96)]),
        ("torchvision/raft_small", [(3, 128, 128)] * 2),
        ("torchvision/r3d_18", [(3, 8, 32, 32)]),
        ("paper/mlp", [(1,)]),
    ],
)
def test_inputs_are_small_where_the_network_takes_them(spec, shapes):
    from graphsurgery.models import build

    with torch.device("meta"):
        module = build(spec) if "resnet" in spec or "vit" in spec else nn.Module()
    assert examination.example_shapes(spec, module) == shapes


def test_a_side_must_do_in_training_too():
    class Picky(nn.Module):
        def forward(self, x):
            if x.shape[-1] < (160 if self.training else 96):
                raise ValueError("too small")
            return x

    assert examination.smallest_side(Picky(), (3, 224, 224)) == (3, 160, 160)
    assert examination.smallest_side(Picky(), (3, 100, 100)) == (3, 100, 100)


def test_weights_are_not_downloaded():
    assert examination.without_download("torchvision/resnet18") == "torchvision/resnet18"
    spec = "torchvision/fcn_resnet50"
    assert examination.without_download(spec) == f"{spec}?weights_backbone=none"
    assert examination.without_download(f"{spec}?num_classes=3") == f"{spec}?num_classes=3&weights_backbone=none"
    assert examination.without_download(f"{spec}?weights=DEFAULT") == f"{spec}?weights=DEFAULT"


def contract(name, measured=0.0, status="holds", **more):
    fields = {"allowed": 1e-12, "seconds": 0.1, "refused": "", "absent": "", "note": ""}
    return {**fields, "name": name, "measured": measured, "status": status, **more}


def document(*contracts, **more):
    fields = {"core": False, "nodes": 10, "spaces": 2, "parameters": 2_000_000, "editable": 0.9999, "kept": 0.25}
    fields["sensitivity"] = 0.5
    return {**fields, "held": [], "contracts": contracts, "wall_seconds": 3.0, "sources": "x", **more}


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "coverage.md"
    path.write_text("".join(f"<!-- {s}: begin -->\n<!-- {s}: end -->\n" for s in ("torchvision counts", "torchvision")))
    return path


def test_the_page_shows_what_falls_short_with_its_reason(page):
    name = "traced = eager, evaluating"
    documents = {
        "torchvision/good": document(contract(name), contract("gates open = no gates", 3e-16)),
        "torchvision/poor": document(
            contract(name, None, "fails", note="RuntimeError: no | way"),
            contract("concatenated = mean of two", None, "refused", refused="a matmul mixes"),
            contract("traced = eager, another resolution", None, "not measured", absent="too_large"),
            editable=0.4,
            held=[["no rule for einsum", 1_200_000]],
        ),
        "torchvision/core": document(contract(name), core=True, sensitivity=1e-9, sources="older"),
        "torchvision/killed": {"failure": "took longer than 9 s", "wall_seconds": 9.0, "sources": "x"},
        "torchvision/quantized_a?quantize=true": {"refused": "its weights are int8", "wall_seconds": 1.0},
    }
    coverage_page.write({"torchvision": documents}, "x", {"torchvision": 3}, page)
    assert "3 more are not measured" in page.read_text()
    text = page.read_text()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert rows["good"][1:3] == ["whole", "float64"]
    assert rows["good"][6:9] == ["99.9%", "25.0%", "0"]
    assert "`3e-16`" in rows["good"]
    assert rows["poor"][6] == "40.0%<sup>1</sup>"
    assert rows["poor"][8] == "**fails**<sup>2</sup>"
    assert "refused<sup>4</sup>" in rows["poor"]
    assert rows["core<sup>5</sup>"][1] == "tensor core"
    assert rows["killed"][1].startswith("**fails**")
    assert rows["quantized_a (int8)"][1].startswith("refused")
    for reason in (
        "1,200,000 parameters: no rule for einsum",
        "RuntimeError: no \\| way",
        "too\\_large",
        "9 s",
        "change by 1e-09 only",
    ):
        assert reason in text
    assert "**2 of 4 torchvision networks** with every contract holding and at least 95%" in text
    assert "**2 of 4 torchvision networks** with more than half" in text
    assert "1 as the tensor core of a detector, 1 are not examined to the end" in text
    assert "1 of 1 networks with int8 weights are refused" in text
    # The core and the int8 network, which carries no digest.
    assert "2 networks were measured with other sources" in text


def test_what_an_old_finding_lacks_is_an_empty_cell_until_it_is_added():
    pruned = "dead channels pruned = masked"
    old = document(*(contract(name) for name in coverage_page.COLUMNS.values() if name != pruned))
    assert coverage_page.lacking(old) == [pruned]

    def cell(found):
        head, _, row = coverage_page.section({"timm/a": found}).splitlines()[:3]
        return dict(zip(*([part.strip() for part in line.split("|")] for line in (head, row)), strict=True))["pruned"]

    assert cell(old) == ""
    complete = coverage_page.completed(old, document(contract(pruned, 2e-15)))
    assert cell(complete) == "`2e-15`"
    assert [found["name"] for found in complete["contracts"]] == list(coverage_page.COLUMNS.values())
    assert coverage_page.lacking(complete) == []

"""Bad input: one line on standard error, the right exit code, nothing written or lost."""

import os
import pickle
import re
import signal
import time

import pytest
import torch
from forked import Forked
from patience import PATIENCE
from torch import nn

from graphsurgery.cli import main, run

SPEC = "paper/cnn?width=3"


class Malicious:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return open, ("owned", "w")


@pytest.mark.parametrize(
    ("tokens", "code", "message"),
    [
        (["trian"], 2, "trian"),
        (["train", SPEC], 2, "--data"),
        (["train", SPEC, "--data", "digits", "-o", "x.pt", "--epochs", "many"], 2, "many"),
        (["train", SPEC, "--data", "digits", "-o", "x.pt", "--epoch", "3"], 2, "--epoch"),
        (["train", "paper/cn", "--data", "digits", "-o", "x.pt"], 2, "did you mean cnn"),
        (["train", SPEC, "--data", "digit", "-o", "x.pt"], 2, "did you mean digits"),
        (["train", SPEC, "--data", "digits", "-o", "no/x.pt"], 2, "its folder does not exist"),
        (["train", SPEC, "--data", "digits", "-o", "."], 2, "is a folder"),
        (["train", SPEC, "--data", "digits", "-o", "x.pt", "--optimizer", "lion"], 2, "unknown optimizer 'lion'"),
        (["train", SPEC, "--data", "digits", "-o", "x.pt", "--device", "gpu"], 2, "device 'gpu': is unknown"),
        (["train", SPEC + "&classes=7", "--data", "digits", "-o", "x.pt"], 2, "has 10 classes"),
        (["train", SPEC + "&in_channels=3", "--data", "digits", "-o", "x.pt"], 2, "does not take the inputs"),
        (["inspect", "nowhere.pt"], 2, "nowhere.pt: no such file"),
        (["inspect", "torchvision/resnet81"], 2, "did you mean"),
        (["inspect", "nets.py:undecided"], 2, r"nets.py.*if x.sum"),
        (["inspect", "nowhere.onnx"], 2, "nowhere.onnx: no such file"),
        (
            ["compress", "a.pt", "--keep", "0.5", "-o", "x.onnx"],
            2,
            r"x\.onnx: only what was an \.onnx file",
        ),
        (["inspect", SPEC, "--input", "3*8"], 2, "expected sizes joined by x"),
        (["compress", "a.pt", "-o", "x.pt"], 2, "give --keep SHARE, --target params=0.5x or --keep-space NAME=N"),
        (["compress", "a.pt", "--keep", "0.5", "--target", "params=0.5x", "-o", "x.pt"], 2, "exclude each other"),
        (["compress", "a.pt", "--target", "params=half", "-o", "x.pt"], 2, r"write params=0\.5x, macs=300M, size=4MB"),
        (
            ["compress", "a.pt", "--target", "params=0.01x", "-o", "x.pt"],
            2,
            r"cannot be reached: .*ask for params=0\.\d+x",
        ),
        (["compress", "a.pt", "--target", "macs=1G", "-o", "x.pt"], 2, "removes nothing"),
        (["compress", "a.pt", "--target", "macs=0.5x", "--ranking", "best", "-o", "x.pt"], 2, "best"),
        (["compress", "a.pt", "--keep", "0.5", "--max-cut", "0.5", "-o", "x.pt"], 2, "say how a --target is met"),
        (["compress", "a.pt", "--keep", "1", "-o", "x.pt"], 2, "0 channels removed"),
        (
            ["compress", "a.pt", "--keep-space", "conv1=3", "-o", "x.pt"],
            2,
            "0 channels removed: conv1 would keep all",
        ),
        (["compress", "a.pt", "--keep", "0", "-o", "x.pt"], 2, "keep is 0, expected a share above 0"),
        (["compress", "a.pt", "--keep", "1.5", "-o", "x.pt"], 2, "at most 1"),
        (["compress", "a.pt", "--keep-space", "conv9=3", "-o", "x.pt"], 2, "conv9 is not a space"),
        (["compress", "a.pt", "--keep-space", "conv1", "-o", "x.pt"], 2, "expected NAME=8"),
        (["compress", "a.pt", "--keep", "0.5", "--importance", "size", "-o", "x.pt"], 2, "choose from l2"),
        (["compress", "a.pt", "--keep", "0.5", "--importance", "taylor", "-o", "x.pt"], 2, "give --data"),
        (["compress", "a.pt", "--keep", "0.5", "--epochs", "3", "-o", "x.pt"], 2, "need data"),
        (
            ["compress", "a.pt", "--keep", "0.5", "--data", "sine", "-o", "x.pt", "--run", "runs"],
            2,
            "does not take the inputs",
        ),
        (["compress", "nets.py:bare", "--keep", "0.5", "-o", "x.pt"], 2, "no channel can be removed"),
        (["merge", "a.pt", "--data", "digits", "-o", "x.pt"], 2, "SECOND"),
        (["merge", "a.pt", "other.pt", "--data", "digits", "-o", "x.pt", "--run", "runs"], 2, "different topologies"),
        (["merge", "a.pt", "b.pt", "--data", "digits", "-o", "x.pt", "--budget", "0"], 2, "budget is 0"),
        (["merge", "a.pt", "b.pt", "--data", "digits", "-o", "x.pt", "--classes", "all"], 2, "1 lists for 2 parents"),
        (["merge", "a.pt", "b.pt", "--data", "digits", "-o", "x.pt", "--heads", "both"], 2, "--tasks: 0 for 2 parents"),
        (["merge", "a.pt", "b.pt", "--data", "digits", "-o", "x.pt", "--tasks", "sine"], 2, "only with --heads both"),
        (["merge", "a.pt", "b.pt", "--data", "sine", "-o", "x.pt", "--run", "runs"], 2, "does not take the inputs"),
        (["merge", "a.pt", "b.pt", "--data", "digits", "-o", "x.pt", "--report", "no/r.html"], 2, "no/r.html"),
        (["export", "a.pt", "-o", "x.onnx", "--opset", "3"], 2, "OPSET|opset"),
    ],
)
def test_bad_input(fails, tokens, code, message):
    found, line = fails(*tokens)
    assert found == code
    assert re.search(message, line), line


def test_weights_need_an_architecture_that_fits(fails):
    torch.save(nn.Linear(4, 3).state_dict(), "weights.pt")
    assert fails("inspect", "weights.pt") == (
        2,
        "weights.pt: holds 2 tensors and not their architecture; give --arch SPEC, "
        "such as torchvision/resnet18 or file.py:function",
    )
    code, line = fails("inspect", "weights.pt", "--arch", "paper/mlp")
    assert code == 2
    assert "4 missing (first hidden.weight), 2 unexpected (first weight)" in line


@pytest.mark.parametrize(
    "cause",
    [
        MemoryError("Unable to allocate 8 TiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_too_little_memory_is_no_mistake_of_ours(fails, monkeypatch, cause):
    from graphsurgery.surgery.channels import cost

    def greedy(_graph):
        raise cause

    monkeypatch.setattr(cost, "cost", greedy)
    code, line = fails("inspect", "a.pt")
    assert code == 2
    assert "there is not enough memory for this" in line


def test_a_truncated_checkpoint(fails, here):
    whole = (here / "a.pt").read_bytes()
    (here / "cut.pt").write_bytes(whole[: len(whole) // 2])
    code, line = fails("inspect", "cut.pt")
    assert code == 2
    assert "cut.pt: is truncated" in line


def test_pickles_execute_nothing_unless_trusted(fails, here):
    (here / "evil.pt").write_bytes(pickle.dumps(Malicious()))
    assert fails("inspect", "evil.pt", "--arch", SPEC)[0] == 2
    assert not (here / "owned").exists()
    torch.save(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), "module.pt")
    code, line = fails("inspect", "module.pt", "--input", "4")
    assert code == 2
    assert "pass --trust-pickle" in line
    assert run(["inspect", "module.pt", "--input", "4", "--trust-pickle"]) == 0


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (["train", SPEC], ["--lr", "--warmup", "--clip"]),
        (["compress", "a.pt", "--keep", "0.5"], ["--lr"]),
        (["merge", "a.pt", "b.pt"], ["--lr"]),
        (["grow", "a.pt", "--by", "2x", "--no-control"], ["--lr"]),
    ],
    ids=lambda value: value[0],
)
def test_a_training_that_diverges_names_options_that_the_command_has(fails, command, flags):
    options = ["--data", "digits", "-o", "x.pt", "--lr", "1e30", "--epochs", "2", "--quiet", "--device", "cpu"]
    code, line = fails(*command, *options)
    assert code == 2
    assert re.search(r"the loss is (nan|inf) in epoch 1, step \d+, at a learning rate of \S+; try --lr 0\.1", line), (
        line
    )
    assert set(re.findall(r"--[a-z]+", line)) == set(flags)
    assert "last good state" not in line


def test_a_failed_export_leaves_the_old_file(fails, here, monkeypatch):
    from graphsurgery.recipes.delivery import deliver

    (here / "old.onnx").write_text("old")
    check = deliver.check_onnx
    monkeypatch.setattr(deliver, "check_onnx", lambda *args, **kwargs: check(*args, **(kwargs | {"rtol": 0.0})))
    code, line = fails("export", "a.pt", "-o", "old.onnx", "--overwrite")
    assert code == 1
    assert "not written: ONNX Runtime deviates" in line
    assert (here / "old.onnx").read_text() == "old"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_is_one_line_too(here, number, code):
    tokens = ["train", SPEC, "--data", "digits", "-o", "x.pt", "--epochs", "100000"]
    errors = here / "errors.txt"
    with Forked(lambda: main(tokens), os.devnull, errors) as process:
        deadline = time.monotonic() + PATIENCE
        while not errors.exists() or "epoch 1/" not in errors.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(number)
        assert process.wait() == code
    assert errors.read_text().splitlines()[-1].startswith("error  interrupted")
    assert "Traceback" not in errors.read_text()
    assert not (here / "x.pt").exists()

"""Training as other processes see it: killed at any moment, and shared by two."""

import runpy
import signal
import sys
import time

import pytest
import torch
from forked import Forked
from patience import PATIENCE
from two_processes import in_two

from graphsurgery.training.loop.run import Run, read_metrics

SCRIPT = """
import sys, time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from graphsurgery.training.loop.fit import fit
from graphsurgery.training.objectives import CrossEntropy
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.run import Run


class Slow(CrossEntropy):
    def on_step(self, fraction_done):
        time.sleep(float(sys.argv[2]))


torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(96, 4)
data = TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())
norm = [nn.BatchNorm1d(8), nn.Dropout(0.2)] if sys.argv[3] == "norm" else []
net = nn.Sequential(nn.Linear(4, 8), *norm, nn.ReLU(), nn.Linear(8, 3))
plan = TrainingPlan(epochs=3, batch_size=10, lr=0.1, device="cpu", gradient_accumulation=2, weight_decay=0.01, clip=1.0)
folder = Path(sys.argv[1])
history = fit(net, data, plan, objective=Slow(3), validation=data, run=Run(folder, save_every=1))
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
torch.save({"weights": net.state_dict(), "train": [r.train["total"] for r in history.records],
            "validation": [r.validation for r in history.records]}, folder / f"result{rank}.pt")
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def go(script, folder, *options):
    """Run the script in this process."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as arguments:
        arguments.setattr(sys, "argv", [str(script), str(folder), *options])
        runpy.run_path(str(script), run_name="__main__")


def result(folder, rank=0):
    return torch.load(folder / f"result{rank}.pt", weights_only=True)


def test_a_killed_run_resumes_to_the_same_result(script, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with Forked(lambda: go(script, cut, "0.05", "norm"), stderr=tmp_path / "errors") as killed:
        deadline = time.monotonic() + PATIENCE
        while not cut.exists() or not any(record["epoch"] == 1 for record in read_metrics(cut)):
            assert time.monotonic() < deadline, (tmp_path / "errors").read_text()
            time.sleep(0.02)
        time.sleep(0.2)  # some steps into the second epoch
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
    assert not (cut / "result0.pt").exists()
    position = Run(cut).load_state("train")["position"]
    assert (position["epoch"], position["step"] > 0) == (1, True)
    go(script, cut, "0", "norm")
    go(script, whole, "0", "norm")
    torch.testing.assert_close(result(cut), result(whole), rtol=0, atol=0)
    assert [record["epoch"] for record in Run(cut).metrics()] == [1, 2, 3]


def test_two_processes_train_as_one_does(script, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    in_two(lambda _: go(script, two, "0", "plain"))
    go(script, one, "0", "plain")
    torch.testing.assert_close(result(two, 0), result(two, 1), rtol=0, atol=0)
    torch.testing.assert_close(result(two), result(one), rtol=1e-4, atol=1e-5)
    assert [record["epoch"] for record in Run(two).metrics()] == [1, 2, 3]

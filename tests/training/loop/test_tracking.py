"""Epochs told to a tracker by Accelerate, whose TensorBoard is a stand-in that writes down what it is told."""

import sys
from dataclasses import replace

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from stand_in_tensorboard import SummaryWriter, installed

from graphsurgery.errors import SurgeryError
from graphsurgery.training import devices
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TRACKERS, TrainingPlan, recorded_plan
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives import CrossEntropy

PLAN = TrainingPlan(epochs=2, batch_size=25, device="cpu")


@pytest.fixture
def tensorboard(monkeypatch):
    return installed(monkeypatch)


def trained(net, blobs, plan, run=None, stage="train"):
    return fit(net, blobs, plan, objective=CrossEntropy(3), validation=blobs, run=run, stage=stage)


@pytest.mark.usefixtures("tensorboard")
def test_every_epoch_of_every_stage_is_told(blobs, make_net, tmp_path):
    run, plan = Run(tmp_path / "run"), replace(PLAN, tracker="tensorboard")
    histories = {stage: trained(make_net(), blobs, plan, run, stage) for stage in ("first", "second")}
    for stage, history in histories.items():
        writer = SummaryWriter.made[str(tmp_path / "run" / "tensorboard" / stage)]
        assert writer.closed
        assert writer.config["epochs"] == 2
        assert writer.scalars["train/total"] == {r.epoch: r.train["total"] for r in history.records}
        assert writer.scalars["validation/accuracy"] == {r.epoch: r.validation["accuracy"] for r in history.records}
        assert set(writer.scalars) == {"train/total", "validation/loss", "validation/accuracy", "lr", "seconds"}


@pytest.mark.usefixtures("tensorboard")
def test_a_tracked_training_is_the_same_and_goes_on(blobs, make_net, tmp_path):
    """The tracker fixes nothing: a run may go on with one, and only its epochs are told."""
    plain, net = make_net(), make_net()
    trained(plain, blobs, replace(PLAN, epochs=3, schedule="constant"))
    run = Run(tmp_path / "run", extend=True)
    trained(net, blobs, replace(PLAN, schedule="constant"), run)
    longer = replace(PLAN, epochs=3, schedule="constant", tracker="tensorboard")
    trained(net, blobs, longer, run)
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=0)
    writer = SummaryWriter.made[str(tmp_path / "run" / "tensorboard" / "train")]
    assert list(writer.scalars["train/total"]) == [3]
    SummaryWriter.made.clear()
    trained(net, blobs, longer, run)  # there is nothing left to tell
    assert not SummaryWriter.made


@pytest.mark.usefixtures("tensorboard")
def test_a_tracker_ends_with_a_training_that_fails(blobs, make_net, tmp_path):
    with pytest.raises(SurgeryError, match="the loss is"):
        trained(make_net(), blobs, replace(PLAN, lr=1e30, tracker="tensorboard"), Run(tmp_path))
    assert SummaryWriter.made[str(tmp_path / "tensorboard" / "train")].closed


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(TRACKERS, "wandb", ("graphsurgery-never-made",))
    with pytest.raises(
        SurgeryError, match=r"^tracker wandb: its package is missing; pip install graphsurgery-never-made$"
    ):
        TrainingPlan(tracker="wandb")


@pytest.mark.usefixtures("tensorboard")
def test_a_tracker_needs_a_run_folder(blobs, make_net):
    with pytest.raises(SurgeryError, match="tracker tensorboard: writes into the run folder, and there is none"):
        trained(make_net(), blobs, replace(PLAN, tracker="tensorboard"))


@pytest.mark.usefixtures("tensorboard")
def test_a_tracker_that_cannot_begin_is_one_line(blobs, make_net, tmp_path, monkeypatch):
    monkeypatch.setattr(SummaryWriter, "__init__", lambda *_, **__: 1 / 0)
    with pytest.raises(SurgeryError, match=r"tracker tensorboard: cannot begin .*division by zero"):
        trained(make_net(), blobs, replace(PLAN, tracker="tensorboard"), Run(tmp_path))


def test_weights_and_biases_has_a_run_for_each_stage(blobs, make_net, tmp_path, monkeypatch):
    """With a stand-in for the package, which Accelerate imports when it begins."""
    told = {}

    class Wandb:
        __spec__ = object()

        def init(self, **named):
            told["init"], told["log"] = named, []
            return self

        def log(self, values, step):
            told["log"].append((step, values["train/total"]))

        def finish(self):
            told["finished"] = True

        @property
        def config(self):
            return self

        def update(self, values, **_):
            told["config"] = values

    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    monkeypatch.setitem(TRACKERS, "wandb", ("torch",))
    history = trained(make_net(), blobs, replace(PLAN, tracker="wandb"), Run(tmp_path / "mine"))
    assert told["init"] == {
        "project": "graphsurgery",
        "name": "train",
        "group": "mine",
        "dir": str(tmp_path / "mine"),
    }
    assert told["log"] == [(record.epoch, record.train["total"]) for record in history.records]
    assert told["finished"]
    assert told["config"]["stage"] == "train"


def test_no_network_remembers_by_what_it_was_trained():
    """A record may name a device, a precision or a tracker that another machine has not."""
    plan = {"epochs": 3, "device": "cuda:7", "mixed_precision": "fp16", "tracker": "wandb", "workers": 9}
    assert recorded_plan({"plan": plan}) == TrainingPlan(epochs=3)
    assert recorded_plan({"plan": plan}, device="cpu").device == "cpu"


def test_a_precision_that_the_device_has_not_is_refused(monkeypatch):
    """Accelerate would train in full precision without a word."""
    with pytest.raises(SurgeryError, match="mixed precision fp16: a cpu has none; use bf16 or no"):
        devices.make_accelerator("cpu", "fp16")

    def unsupported(**_):
        raise ValueError("bf16 requires another device")

    monkeypatch.setattr("accelerate.Accelerator", unsupported)
    with pytest.raises(SurgeryError, match=r"mixed precision bf16: not on this cpu .*; use no"):
        devices.make_accelerator("cpu", "bf16")

import json

import pytest
import torch

from graphsurgery.errors import CheckpointError, SurgeryError
from graphsurgery.training.loop.run import EpochRecord, Run


def test_the_configuration_is_kept_and_checked(tmp_path):
    Run(tmp_path / "a", config={"lr": 0.1, "sizes": (1, 2)})
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == {"lr": 0.1, "sizes": [1, 2]}
    Run(tmp_path / "a", config={"lr": 0.1, "sizes": (1, 2)})
    Run(tmp_path / "a").log(EpochRecord("train", 1, {"total": 1.0}))
    with pytest.raises(SurgeryError, match=r"holds a run with lr = 0.1, now 0.2; give a new folder"):
        Run(tmp_path / "a", config={"lr": 0.2, "sizes": (1, 2)})


def test_the_entry_that_differs_is_named(tmp_path):
    Run(tmp_path, config={"plan": {"rounds": 3, "training": {"lr": 0.1}}}).log(EpochRecord("train", 1, {"total": 1.0}))
    with pytest.raises(SurgeryError, match=r"holds a run with plan.training.lr = 0.1, now 0.2; give"):
        Run(tmp_path, config={"plan": {"rounds": 3, "training": {"lr": 0.2}}})
    with pytest.raises(SurgeryError, match=r"holds a run with plan = \{.*\}, now None; give"):
        Run(tmp_path, config={})


def test_a_folder_in_which_nothing_has_begun_takes_another_configuration(tmp_path):
    Run(tmp_path, config={"model": "refused"})
    Run(tmp_path, config={"model": "corrected"}).save_state("train", {"epoch": 1})
    assert json.loads((tmp_path / "config.json").read_text()) == {"model": "corrected"}
    with pytest.raises(SurgeryError, match="holds a run with model = 'corrected'"):
        Run(tmp_path, config={"model": "other"})


def test_a_torn_line_and_repeated_epochs_are_dropped(tmp_path):
    run = Run(tmp_path)
    for stage, epoch in (("gates", 1), ("train", 1), ("train", 2)):
        run.log(EpochRecord(stage, epoch, {"total": 1.0}))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "tr')
    run.forget_epochs_after("train", 1)
    assert [(r["stage"], r["epoch"]) for r in run.metrics()] == [("gates", 1), ("train", 1)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_damaged_state(tmp_path):
    run = Run(tmp_path)
    assert run.load_state("train") is None
    run.state_file("train").write_bytes(b"PK\x03\x04 not a state")
    with pytest.raises(CheckpointError, match=r"train.state.pt: cannot be read as a state; delete it"):
        run.load_state("train")


def test_a_failed_save_keeps_the_old_state(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.save_state("train", {"weights": torch.ones(3)})

    def full_disk(_state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(SurgeryError, match=r"No space left on device.; the old file, if any, is untouched"):
        run.save_state("train", {"weights": torch.zeros(3)})
    assert torch.equal(run.load_state("train")["weights"], torch.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == ["train.state.pt"]


def test_a_stage_is_a_file_name(tmp_path):
    with pytest.raises(SurgeryError, match="is not a file name"):
        Run(tmp_path).state_file("../x")

"""Losses and metrics of each epoch, told to TensorBoard or Weights & Biases by Accelerate's trackers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from graphsurgery.errors import SurgeryError, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

    from graphsurgery.training.loop.plan import TrainingPlan
    from graphsurgery.training.loop.run import EpochRecord

PROJECT = "graphsurgery"


def folder_of(tracker: str, folder: Path | None) -> Path | None:
    """Where a tracker writes; None where nobody tracks.

    Raises:
        SurgeryError: there is no run folder.
    """
    if tracker == "none":
        return None
    if folder is None:
        raise SurgeryError(f"tracker {tracker}: writes into the run folder, and there is none; name it with --run")
    return folder / tracker


@contextlib.contextmanager
def tracked(accelerator: Accelerator, plan: TrainingPlan, stage: str, place: Path | None) -> Iterator[None]:
    """The accelerator's trackers run inside the block, one run for the stage.

    Args:
        accelerator: made to log with `plan.tracker`; `log` reaches the trackers from the main process.
        plan: what is told of the training as such.
        stage: what the run is called.
        place: as from `folder_of`; None starts nothing.

    Raises:
        SurgeryError: the tracker cannot begin.
    """
    if place is None:
        yield
        return
    try:
        accelerator.init_trackers(**_begun(plan, stage, place))
    except Exception as error:  # a tracker's errors have no base class in common
        raise SurgeryError(
            f"tracker {plan.tracker}: cannot begin ({one_line(error)}); or leave out --tracker"
        ) from error
    try:
        yield
    finally:
        # `Accelerator.end_training` would end the group of processes too, and other stages follow.
        for tracker in accelerator.trackers:
            tracker.finish()


def _begun(plan: TrainingPlan, stage: str, place: Path) -> dict[str, Any]:
    """What a tracker is begun with: TensorBoard has a folder for each stage, Weights & Biases a run in a group."""
    config = {"stage": stage, **asdict(plan)}
    if plan.tracker == "tensorboard":
        return {"project_name": stage, "config": config}
    named = {"name": stage, "group": place.parent.name, "dir": str(place.parent)}
    return {"project_name": PROJECT, "config": config, "init_kwargs": {plan.tracker: named}}


def values_of(record: EpochRecord) -> dict[str, float]:
    """The numbers of an epoch by names such as `train/total` and `validation/accuracy`."""
    parts: dict[str, Mapping[str, float]] = {"train": record.train, "validation": record.validation}
    named = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return {**named, **record.extra, "lr": record.lr, "seconds": record.seconds}

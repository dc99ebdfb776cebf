"""The run folder: configuration, metrics, and the states from which an interrupted stage goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from graphsurgery.checkpoint.atomic import atomic_write, clean_parts, write_tensors
from graphsurgery.errors import CheckpointError, SurgeryError
from graphsurgery.training.loop.holding import held


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave.

    Attributes:
        stage: which stage of the recipe it belongs to.
        epoch: its number in the stage, from 1.
        train: mean losses over the epoch's training examples.
        validation: metrics on the validation data, empty without them.
        extra: what the objective adds.
        lr: learning rate of the first parameter group at the epoch's last step.
        seconds: wall-clock time, validation included.
    """

    stage: str
    epoch: int
    train: dict[str, float]
    validation: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    lr: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class History:
    """What a stage did, epoch by epoch.

    Attributes:
        records: one per epoch, in order.
        best_epoch: the epoch, from 1, whose weights the module has; None for those of the last epoch.
    """

    records: tuple[EpochRecord, ...]
    best_epoch: int | None = None


_METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, also while another process works in it, but for one that is cut short."""
    file = folder / _METRICS
    records = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Run:
    """A folder with `config.json`, `metrics.jsonl` and one `STAGE.state.pt` per stage.

    One process works in it at a time (of several that train together, the first holds it for all). What a killed one
    has left of files is removed.

    Args:
        folder: made if it is missing.
        config: the resolved configuration, as JSON; a folder that holds another one is refused.
        call: the command line, kept beside the configuration and never compared.
        extend: let the run go on for more epochs than its configuration had.
        save_every: also save the state every so many optimizer steps; 0 saves after each epoch only.

    Raises:
        SurgeryError: the folder holds a run with another configuration, cannot be made, or another process works in it.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        config: Mapping[str, Any] | None = None,
        call: Mapping[str, Any] | None = None,
        save_every: int = 0,
        extend: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.extend = extend
        self.save_every = save_every
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SurgeryError(f"run folder {folder}: cannot be made ({error.strerror}); give another place") from error
        self._held = held(self.folder) if os.environ.get("RANK", "0") == "0" else None
        if self._held is not None:
            clean_parts(self.folder)
        if config is not None:
            self._check_or_write_config(config, call)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; a line that a kill cut short is left out."""
        return read_metrics(self.folder)

    def log(self, record: EpochRecord) -> None:
        """Append one line to `metrics.jsonl`."""
        whole = self._metrics_file.stat().st_size if self._metrics_file.exists() else 0
        try:
            with self._metrics_file.open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self._metrics_file, whole)
            raise SurgeryError(f"{self._metrics_file}: cannot be written ({error.strerror}); free space") from error

    def forget_epochs_after(self, stage: str, epoch: int) -> None:
        """Drop the stage's metrics lines after `epoch`: a resumed stage writes them again."""
        if not self._metrics_file.exists():
            return
        kept = [r for r in self.metrics() if r.get("stage") != stage or r["epoch"] <= epoch]
        with atomic_write(self._metrics_file) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def save_state(self, stage: str, state: Mapping[str, Any]) -> None:
        """Write the stage's state; a kill at any moment leaves the old one or the new one."""
        write_tensors(self.state_file(stage), dict(state))

    def load_state(self, stage: str) -> dict[str, Any] | None:
        """The stage's last state on the CPU, or None where it has none.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = self.state_file(stage)
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{path}: cannot be read as a state; delete it to begin stage {stage} again"
            ) from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{path}: holds a {type(state).__name__}, expected a state; delete it to begin again")
        return state

    def state_file(self, stage: str) -> Path:
        """Where the stage's state lies."""
        if not re.fullmatch(r"[\w.-]+", stage):
            raise SurgeryError(f"stage {stage!r}: is not a file name; use letters, digits, dots and dashes")
        return self.folder / f"{stage}.state.pt"

    @property
    def _metrics_file(self) -> Path:
        return self.folder / _METRICS

    def _check_or_write_config(self, config: Mapping[str, Any], call: Mapping[str, Any] | None) -> None:
        path = self.folder / "config.json"
        begun = self._metrics_file.exists() or any(self.folder.glob("*.state.pt"))
        if path.exists() and begun:
            try:
                found = json.loads(path.read_text())
            except json.JSONDecodeError as error:
                raise SurgeryError(f"{path}: is not JSON; give a new folder") from error
            if (differs := difference(found, config, extend=self.extend)) is not None:
                name, old, new = differs
                raise SurgeryError(
                    f"run folder {self.folder}: holds a run with {name} = {old!r}, now {new!r}; "
                    "give a new folder, or the old configuration to resume"
                )
            if not self.extend:
                return
        with atomic_write(path) as temporary:
            written = {**config, **({} if call is None else {"call": call})}
            temporary.write_text(json.dumps(written, indent=2) + "\n")


def difference(found: Any, wanted: Any, *, extend: bool = False) -> tuple[str, Any, Any] | None:
    """The first entry by which two configurations differ: its path, and both values; None where they are the same.

    Args:
        found: what a `config.json` holds; the command line in it is not compared.
        wanted: the other.
        extend: whether `wanted` may have more epochs.
    """
    # What JSON makes of it: tuples become lists, and so on.
    wanted = json.loads(json.dumps(wanted))
    if isinstance(found, dict):
        found = {key: value for key, value in found.items() if key != "call"}
    if extend:
        found = _as_long(found, wanted)
    return None if found == wanted else _difference(found, wanted)


def _as_long(found: Any, wanted: Any) -> Any:
    """A configuration with the epochs of another where these are more."""
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return found
    more = {
        key: wanted[key]
        for key, value in found.items()
        if key == "epochs" and isinstance(value, int) and isinstance(wanted.get(key), int) and wanted[key] > value
    }
    return {**{key: _as_long(value, wanted.get(key)) for key, value in found.items()}, **more}


def _difference(found: Any, wanted: Any, name: str = "") -> tuple[str, Any, Any]:
    """The first entry that differs, by its path."""
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return name, found, wanted
    key = next(key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key))
    return _difference(found.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))

"""Where a stage is, per process random states, and whether a saved state belongs to the stage that asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from graphsurgery.errors import SurgeryError
from graphsurgery.training.data.batches import mixed_seed
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.run import EpochRecord

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Position:
    """Where a stage is: everything besides tensors that changes from step to step.

    `epoch` and `step` count what is done; `sums` are losses times examples of the epoch so far, of this process.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    examples: float = 0.0
    seconds: float = 0.0
    records: list[EpochRecord] = field(default_factory=list)
    best_epoch: int | None = None
    best_score: float | None = None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Position:
        """The position whose `dataclasses.asdict` is `fields`."""
        records = [EpochRecord(**record) for record in fields["records"]]
        return cls(**{**fields, "records": records})


def process_states(accelerator: Accelerator, at: Position) -> list[dict[str, Any]]:
    """What differs between processes, of each in turn: random states, and loss sums of the epoch so far."""
    device = accelerator.device
    mine: dict[str, Any] = {"cpu": torch.get_rng_state(), "sums": dict(at.sums), "examples": at.examples}
    if device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state(device)
    if accelerator.num_processes == 1:
        return [mine]
    states: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(states, mine)
    return states


def restore_process_state(accelerator: Accelerator, at: Position, states: list[dict[str, Any]], seed: int) -> None:
    """Take back this process's part of `process_states`."""
    if len(states) != accelerator.num_processes:
        # Another number of processes: there is no state to go on from, so draw anew from the position.
        torch.manual_seed(mixed_seed(seed, at.epoch, at.step, accelerator.process_index))
        return
    mine = states[accelerator.process_index]
    at.sums, at.examples = mine["sums"], mine["examples"]
    torch.set_rng_state(mine["cpu"])
    if "cuda" in mine and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(mine["cuda"], accelerator.device)


def check_same_stage(
    path: Path,
    state: Mapping[str, Any],
    plan: TrainingPlan,
    examples: int,
    module: nn.Module,
    *,
    extend: bool = False,
    sharded: bool = False,
) -> None:
    """Refuse a state that another plan, data set or module has left; to `extend` it, the plan may have more epochs.

    A state of processes that were `sharded` has the optimizer's part in another form.

    Raises:
        SurgeryError: names the first field or tensor that differs.
    """
    advice = "use a new run folder, or the old settings to resume"
    for name, value in plan.what_fixes_the_result().items():
        if extend and name == "epochs" and value > state["plan"].get(name, value):
            continue
        if state["plan"].get(name) != value:
            raise SurgeryError(f"{path}: was trained with {name}={state['plan'].get(name)}, now {value}; {advice}")
    if state["examples"] != examples:
        raise SurgeryError(f"{path}: was trained on {state['examples']} examples, now {examples}; {advice}")
    if state.get("sharded", False) != sharded:
        raise SurgeryError(f"{path}: was trained {'under' if not sharded else 'without'} FSDP; go on so, or {advice}")
    mine = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state["model"].items()}
    if mine != found:
        name = next(n for n in [*mine, *found] if mine.get(n) != found.get(n))
        raise SurgeryError(f"{path}: has {name} of shape {found.get(name)}, the model {mine.get(name)}; {advice}")

"""The one training loop: any module, any objective, on any devices, resumable after a kill at any moment."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from graphsurgery.errors import DivergedError, SurgeryError
from graphsurgery.training.data.batches import Examples, epoch_plan, grouped, mixed_seed
from graphsurgery.training.devices import device_of, make_accelerator
from graphsurgery.training.loop import sharding
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.loop.optimizers import make_optimizer, parameter_groups, set_rates
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import Reporter, SilentReporter, default_reporter
from graphsurgery.training.loop.resuming import Position, check_same_stage, process_states, restore_process_state
from graphsurgery.training.loop.run import EpochRecord, History, Run
from graphsurgery.training.loop.tracking import folder_of, tracked, values_of
from graphsurgery.training.objectives.tasks import Batch, Objective, rank_of

if TYPE_CHECKING:
    from accelerate import Accelerator


class _Step(nn.Module):
    """Loss of a batch as a module, so that Accelerate's wrappers see one forward and the objective the plain module."""

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.module = module
        self.objective = objective

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.objective.loss(self.module, batch)


def fit(
    module: nn.Module,
    dataset: Dataset[Any],
    plan: TrainingPlan,
    *,
    objective: Objective,
    validation: Dataset[Any] | None = None,
    run: Run | None = None,
    stage: str = "train",
    param_groups: Iterable[Mapping[str, Any]] | None = None,
    reporter: Reporter | None = None,
) -> History:
    """Train `module` in place; it ends in eval mode, on the device where it was.

    The same plan gives the same steps on one process and, to rounding, on many (`torchrun`, `accelerate launch`):
    each takes its share of every batch. With a `run` that holds a state of this stage, training goes on from it, and
    on the CPU ends bit-exactly as if it had never stopped; a finished stage is loaded and not trained again.

    Args:
        module: any module; its parameters that require a gradient are trained.
        dataset: training examples as tuples of tensors; a `TensorDataset` takes the fast path.
        plan: how to train.
        objective: what is minimised and measured.
        validation: measured after each epoch; needed by `plan.keep_best`.
        run: folder for metrics and states; None keeps nothing.
        stage: names the stage in the run folder.
        param_groups: groups with a rate, decay or schedule of their own, see `parameter_groups`.
        reporter: told about progress; by default a bar on a terminal and log lines elsewhere.

    Returns:
        Losses, metrics, rate and seconds of each epoch.

    Raises:
        SurgeryError: the loss is not finite, the run folder belongs to another plan or module, or nothing is trainable.
    """
    if plan.keep_best and validation is None:
        raise SurgeryError(f"{stage}: keep_best needs validation data; give validation, or set keep_best=False")
    home = device_of(module)
    trainer = _Stage(module, dataset, plan, objective, validation, run, stage, param_groups)
    shown = (reporter or default_reporter()) if trainer.accelerator.is_main_process else SilentReporter()
    try:
        with trainer.own_random_state():
            trainer.resume()
            shown.started(stage, plan.epochs)
            if trainer.at.epoch < plan.epochs:
                trainer.train(shown)
            return trainer.finish()
    finally:
        shown.finished()
        module.to(home)
        module.eval()


_WITHOUT_BEST = (
    "{stage}: validation {score} is no number in any epoch, so that none is the best; look for NaN in the validation "
    "data, or set keep_best=False"
)


class _Stage:
    """One stage in progress."""

    def __init__(
        self,
        module: nn.Module,
        dataset: Dataset[Any],
        plan: TrainingPlan,
        objective: Objective,
        validation: Dataset[Any] | None,
        run: Run | None,
        stage: str,
        param_groups: Iterable[Mapping[str, Any]] | None,
    ) -> None:
        self.module, self.plan, self.objective, self.validation = module, plan, objective, validation
        self.run, self.stage = run, stage
        self.at = Position()
        self.best_weights: dict[str, Tensor] | None = None
        self.place = folder_of(plan.tracker, None if run is None else run.folder)
        self.accelerator = make_accelerator(plan.device, plan.mixed_precision, plan.tracker, self.place)
        self.examples = Examples(dataset, self.accelerator.device, workers=plan.workers)
        objective.to(self.accelerator.device)
        self.whole, self.shards = module, sharding.shards(self.accelerator)
        if self.shards:
            possible = objective.takes_shards and param_groups is None
            self.module = module = sharding.own_copy(module, self.accelerator, possible=possible)
        groups = parameter_groups(module, plan, param_groups)
        # The module moves first: the optimizer's state is made where the parameters are.
        module.to(self.accelerator.device)
        self.optimizer = make_optimizer(groups, plan)
        self.step_module, self.synchronized, wrapped = sharding.prepared(
            self.accelerator, module, self.optimizer, lambda trained: _Step(trained, objective)
        )
        # Accelerate's wrapper is only needed to unscale fp16 gradients; its bookkeeping doubles a small model's step.
        self.stepper = self.optimizer if self.accelerator.scaler is None else wrapped
        # Spread parameters are clipped as the list of their module only.
        every = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.parameters = list(module.parameters()) if self.shards else every

    @contextlib.contextmanager
    def own_random_state(self) -> Iterator[None]:
        """Seed torch by the plan inside the block; the caller's random state is untouched."""
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(mixed_seed(self.plan.seed, self.accelerator.process_index))
            yield

    def train(self, reporter: Reporter) -> None:
        """Train the epochs that are left."""
        with tracked(self.accelerator, self.plan, self.stage, self.place):
            while self.at.epoch < self.plan.epochs:
                self.train_epoch(reporter)

    def train_epoch(self, reporter: Reporter) -> None:
        """Train from the current position to the end of its epoch, validate, log and save."""
        at, plan, began = self.at, self.plan, time.perf_counter()
        self.module.train()
        shares = self._shares()
        accumulation = plan.gradient_accumulation
        mine = [parts[self.accelerator.process_index] for step in shares[at.step :] for parts in step]
        batches = self.examples.batches(mine, mixed_seed(plan.seed, at.epoch))
        for parts in grouped(batches, accumulation):
            done = at.epoch + at.step / len(shares)
            self.objective.on_step(done / plan.epochs)
            set_rates(self.optimizer, plan, done)
            self._optimizer_step(parts, sum(len(p) for part in shares[at.step] for p in part))
            at.step += 1
            reporter.advanced(at.epoch + at.step / len(shares), at.sums["total"] / max(1.0, at.examples))
            if self.run and self.run.save_every and at.step % self.run.save_every == 0 and at.step < len(shares):
                at.seconds, began = at.seconds + time.perf_counter() - began, time.perf_counter()
                self.save()
        self._end_epoch(reporter, began)

    def finish(self) -> History:
        """Put the best weights in place where the plan asks for them."""
        if self.plan.keep_best and self.at.records and self.at.best_epoch is None:
            raise SurgeryError(_WITHOUT_BEST.format(stage=self.stage, score=self.objective.score))
        if self.best_weights is not None or self.shards:
            sharding.give(self.whole, self.best_weights or sharding.whole(self.module))
        return History(tuple(self.at.records), self.at.best_epoch)

    def save(self) -> None:
        """Write the whole state, from the main process."""
        if self.run is None:
            return
        processes = process_states(self.accelerator, self.at)
        states = sharding.states(self.module, self.optimizer)
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        self.run.save_state(
            self.stage,
            {
                "plan": self.plan.what_fixes_the_result(),
                "examples": len(self.examples),
                "position": asdict(self.at),
                **states,
                "best": self.best_weights,
                "scaler": scaler.state_dict() if scaler else None,
                "objective": self.objective.state_dict(),
                "processes": processes,
            },
        )

    def resume(self) -> None:
        """Take the run's state of this stage, if there is one."""
        state = self.run.load_state(self.stage) if self.run else None
        if state is None or self.run is None:
            return
        asked = {"extend": self.run.extend, "sharded": self.shards}
        check_same_stage(self.run.state_file(self.stage), state, self.plan, len(self.examples), self.module, **asked)
        self.at = Position.from_dict(state["position"])
        self.best_weights = state["best"]
        sharding.give_states(self.module, self.optimizer, state)
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.objective.load_state_dict(state["objective"])
        restore_process_state(self.accelerator, self.at, state["processes"], self.plan.seed)
        if self.accelerator.is_main_process:
            self.run.forget_epochs_after(self.stage, self.at.epoch)

    def _shares(self) -> list[list[list[Tensor]]]:
        return epoch_plan(
            len(self.examples),
            self.plan.batch_size,
            processes=self.accelerator.num_processes,
            accumulation=self.plan.gradient_accumulation,
            seed=self.plan.seed,
            epoch=self.at.epoch,
        )

    def _optimizer_step(self, parts: list[list[Tensor]], batch_examples: int) -> None:
        self.optimizer.zero_grad()
        for number, batch in enumerate(parts):
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.synchronized):
                losses = self.step_module(batch)
                examples = len(batch[0])
                self._add_losses(losses, examples)
                # Data parallel averages gradients over processes: their number makes a sum of it.
                share = examples * self.accelerator.num_processes / batch_examples
                self.accelerator.backward(losses["total"] * share if share != 1 else losses["total"])
        if self.plan.clip is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.plan.clip)
        self.stepper.step()

    def _add_losses(self, losses: dict[str, Tensor], examples: int) -> None:
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        for name, value in zip(losses, values, strict=True):
            self.at.sums[name] = self.at.sums.get(name, 0.0) + value * examples
        self.at.examples += examples
        total = values[list(losses).index("total")]
        if not abs(total) < float("inf"):
            state = self.run.state_file(self.stage) if self.run else None
            raise DivergedError(
                f"{self.stage}: the loss is {total} in epoch {self.at.epoch + 1}, step {self.at.step + 1}, at a "
                f"learning rate of {self.plan.lr:g}",
                self.plan.calmer(),
                str(state) if state is not None and state.exists() else "",
            )

    def _end_epoch(self, reporter: Reporter, began: float) -> None:
        at = self.at
        if self.accelerator.num_processes > 1:
            _same_buffers(self.module)
        found: dict[str, float] = {}
        if self.validation is not None:
            size = max(256, self.plan.batch_size)
            found = evaluate(self.module, self.validation, self.objective, batch_size=size, workers=self.plan.workers)
        record = EpochRecord(
            stage=self.stage,
            epoch=at.epoch + 1,
            train=_mean_losses(at, self.accelerator),
            validation=found,
            extra=self.objective.epoch_metrics(),
            lr=self.optimizer.param_groups[0]["lr"],
            seconds=at.seconds + time.perf_counter() - began,
        )
        at.records.append(record)
        self._remember_best(record)
        at.epoch, at.step, at.sums, at.examples, at.seconds = at.epoch + 1, 0, {}, 0.0, 0.0
        # The line first: after a kill between the two, the resumed stage drops it and writes it again.
        if self.run and self.accelerator.is_main_process:
            self.run.log(record)
        self.save()
        self.accelerator.log(values_of(record), step=record.epoch)
        reporter.epoch_finished(record)

    def _remember_best(self, record: EpochRecord) -> None:
        if not self.plan.keep_best:
            return
        score = record.validation.get(self.objective.score)
        if score is None:
            raise SurgeryError(
                f"{self.stage}: keep_best needs the metric {self.objective.score!r}, the objective gives "
                f"{', '.join(record.validation) or 'none'}; set its score"
            )
        rank, best = partial(rank_of, higher_is_better=self.objective.higher_is_better), self.at.best_score
        if rank(score) > (-math.inf if best is None else rank(best)):
            self.at.best_score, self.at.best_epoch = score, record.epoch
            self.best_weights = sharding.whole(self.module)


def _mean_losses(at: Position, accelerator: Accelerator) -> dict[str, float]:
    """The losses of the epoch so far, over the examples of all processes."""
    names = list(at.sums)
    sums = torch.tensor([at.examples, *(at.sums[name] for name in names)], dtype=torch.float64)
    if accelerator.num_processes > 1:
        shared = sums.to(accelerator.device)
        torch.distributed.all_reduce(shared)
        sums = shared.cpu()
    return {name: (sums[number + 1] / sums[0]).item() for number, name in enumerate(names)}


def _same_buffers(module: nn.Module) -> None:
    """Give every process the BatchNorm statistics of the first; each has seen its own share."""
    for buffer in module.buffers():
        torch.distributed.broadcast(buffer, src=0)

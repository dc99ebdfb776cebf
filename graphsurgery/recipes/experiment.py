"""The books of a recipe: what it trained, what every network scored and cost, and which contracts were measured."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from graphsurgery.graph import ModelGraph
from graphsurgery.recipes.outcome import Check, Outcome, Row, required
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.training.data.dataset import Data, size_of
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import EpochRecord, History, Run
from graphsurgery.training.objectives.tasks import Objective, objective_for


@dataclass(frozen=True)
class Effort:
    """What training took, all that a network is made of together; None is unknown.

    Attributes:
        epochs: passes over the training data.
        macs: multiply-adds of all forward passes of what learns; what teachers answer is not counted.
        seconds: of the processor, in this process.
    """

    epochs: float | None = 0.0
    macs: float | None = 0.0
    seconds: float | None = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(_sum(self.epochs, other.epochs), _sum(self.macs, other.macs), _sum(self.seconds, other.seconds))


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


class Experiment:
    """Networks on data: trained, measured and compared, with a row for each.

    Args:
        data: selection looks at `data.validation`; `data.test` is only measured.
        device: where to train and measure.
        run: folder for metrics and states; an interrupted run goes on from it.
        reporter: told about progress.
        objective: what is measured, and learnt where a training says nothing else; by default the task's.
    """

    def __init__(
        self,
        data: Data,
        *,
        device: str = "auto",
        run: Run | None = None,
        reporter: Reporter | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.data, self.device, self.run, self.reporter = data, device, run, reporter
        self.objective = objective or objective_for(data)
        self.rows: list[Row] = []
        self.checks: list[Check] = []
        self.curves: list[EpochRecord] = []
        self._began = time.perf_counter()

    def train(
        self,
        graph: ModelGraph,
        plan: TrainingPlan,
        stage: str,
        *,
        objective: Objective | None = None,
        dataset: Dataset[Any] | None = None,
        groups: Iterable[Mapping[str, Any]] | None = None,
    ) -> tuple[History, Effort]:
        """Train a network in place; by default on the task's labels."""
        began = time.process_time()
        history = self.fit(graph.module, plan, stage, objective=objective, dataset=dataset, groups=groups)
        return history, self.effort(graph, plan.epochs, time.process_time() - began)

    def fit(
        self,
        module: nn.Module,
        plan: TrainingPlan,
        stage: str,
        *,
        objective: Objective | None = None,
        dataset: Dataset[Any] | None = None,
        groups: Iterable[Mapping[str, Any]] | None = None,
    ) -> History:
        """Train a module in place, such as one whose weights are masked for the time being."""
        history = fit(
            module,
            self.data.train if dataset is None else dataset,
            plan,
            objective=objective or self.objective,
            validation=self.data.validation,
            run=self.run,
            stage=stage,
            param_groups=groups,
            reporter=self.reporter,
        )
        self.curves.extend(history.records)
        return history

    def effort(self, graph: ModelGraph, epochs: float | None, seconds: float | None = None) -> Effort:
        """What so many epochs of a network take."""
        macs = None if epochs is None else epochs * size_of(self.data.train) * cost(graph).macs
        return Effort(epochs, macs, seconds)

    def scored(self, module: nn.Module) -> dict[str, dict[str, float]]:
        """The metrics of a module on validation and on test data."""
        parts = {"validation": self.data.validation, "test": self.data.test}
        return {name: evaluate(module, part, self.objective, device=self.device) for name, part in parts.items()}

    def measured(self, name: str, network: ModelGraph | nn.Module, effort: Effort | None = None, note: str = "") -> Row:
        """What a network scores and costs, as a row that is not in the books yet."""
        module = network.module if isinstance(network, ModelGraph) else network
        size = cost(network) if isinstance(network, ModelGraph) else None
        effort, found = effort or Effort(None, None, None), self.scored(module)
        return Row(
            name,
            test=found["test"],
            validation=found["validation"],
            parameters=size.parameters if size else sum(p.numel() for p in module.parameters()) or None,
            macs=size.macs if size else None,
            epochs=effort.epochs,
            training_macs=effort.macs,
            seconds=effort.seconds or None,  # none of what was trained elsewhere
            note=note,
        )

    def measure(self, name: str, network: ModelGraph | nn.Module, effort: Effort | None = None, note: str = "") -> Row:
        """A row of the table."""
        self.rows.append(self.measured(name, network, effort, note))
        return self.rows[-1]

    def write(self, name: str, found: Mapping[str, Mapping[str, float]], note: str = "") -> None:
        """A row of what `scored` found, without sizes: of a form that a network has for the time being."""
        self.rows.append(Row(name, found["test"], found["validation"], note=note))

    def scores(self) -> dict[str, float]:
        """The test score of every row by its name."""
        return {row.name: row.test[self.objective.score] for row in self.rows}

    def better(self, one: Row, other: Row) -> bool:
        """Whether one scores more than another on validation data; see `Row.rank`."""
        return self.rank(one) > self.rank(other)

    def rank(self, row: Row) -> tuple[float, float]:
        """Higher is better, on validation data."""
        return row.rank(self.objective.score, higher_is_better=self.objective.higher_is_better)

    def require(self, check: Check | None) -> None:
        """A contract that nothing is trained behind where it does not hold.

        Raises:
            CheckFailedError: it does not.
        """
        if check is not None:
            self.checks.append(required(check))

    def outcome(self, title: str, verdict: str, config: Mapping[str, Any], **more: Any) -> Outcome:
        """Everything that was found out, with the seconds since the experiment began."""
        return Outcome(**self.findings(title, verdict, config), **more)

    def findings(self, title: str, verdict: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that every kind of outcome has."""
        return {
            "title": title,
            "rows": tuple(self.rows),
            "metric": self.objective.score,
            "higher_is_better": self.objective.higher_is_better,
            "curves": tuple(self.curves),
            "checks": tuple(self.checks),
            "verdict": verdict,
            "config": config,
            "seconds": time.perf_counter() - self._began,
        }

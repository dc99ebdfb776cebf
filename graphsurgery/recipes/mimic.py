"""Mimic: a student learns what its teachers say about examples that need no labels.

The teachers' logits are computed once. Next to the student stand the teachers, their ensemble, and the same student
trained on labels: where the teachers are no better than that one, mimicry cannot help, and the verdict says so.

Source: Ba & Caruana, "Do deep nets really need to be deep?", arXiv:1312.6184.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs import one_output
from graphsurgery.passes.factorize import factorize, unfactorize
from graphsurgery.recipes.outcome import Check, Outcome, Row, comparison
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.deviation import deviation, double
from graphsurgery.training.data.batches import Examples, in_order
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.data.loading import check_fits, recorded
from graphsurgery.training.data.transfer import answered, augmented, unlabelled
from graphsurgery.training.devices import choose_device, evaluating, placed
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import EpochRecord, Run
from graphsurgery.training.objectives.imitation import Imitation, Mimicry
from graphsurgery.training.objectives.tasks import Objective, objective_for
from graphsurgery.training.objectives.teachers import Teachers, logits_of

ALLOWED = 1e-10


@dataclass(frozen=True)
class MimicPlan:
    """How a student mimics.

    Attributes:
        training: of the student, and of the one that learns labels.
        imitation: the loss.
        standardise: divide the logits of each class by their deviation over the transfer set.
        bottleneck: channels between the two factors of the student's largest linear layer while it trains; afterwards
            they are multiplied to one layer again. None trains the layer as it is.
        keep_bottleneck: leave the two factors.
        copies: augmented copies of each example, without labels.
        control: also train the same student on labels.
        margin: by how much the teachers must beat that student on validation data for mimicry to make sense.
    """

    training: TrainingPlan
    imitation: Imitation = field(default_factory=Imitation)
    standardise: bool = False
    bottleneck: int | None = None
    keep_bottleneck: bool = False
    copies: int = 0
    control: bool = True
    margin: float = 0.0


def mimic(
    student: ModelGraph,
    teachers: Mapping[str, nn.Module],
    data: Data,
    plan: MimicPlan,
    *,
    transfer: Dataset[Any] | None = None,
    cache: Path | None = None,
    run: Run | None = None,
    reporter: Reporter | None = None,
    made: Callable[[ModelGraph], None] | None = None,
) -> tuple[ModelGraph, Outcome]:
    """Train a student on the logits of its teachers.

    Args:
        student: an untrained network; it is not modified.
        teachers: one or more by name; the logits of several are averaged.
        data: labels are used by the control and, where the plan says so, beside the logits; and to measure.
        plan: how.
        transfer: examples whose labels nobody knows, besides `data.train`.
        cache: folder for the logits.
        run: folder for metrics and states; an interrupted run goes on from it.
        reporter: told about progress.
        made: given the trained student as soon as it is there, before the control is trained.

    Returns:
        The student, and everything that was measured.

    Raises:
        SurgeryError: no teacher, data of other shapes, other numbers of classes, or training fails.
    """
    if not teachers:
        raise SurgeryError("mimic: no teacher; give one or more")
    began = time.perf_counter()
    check_fits(data, student.module, name="the student")
    for name, teacher in teachers.items():
        check_fits(data, teacher, name=name)
    if transfer is not None:
        shape = tuple(torch.as_tensor(transfer[0][0]).shape)
        if shape != tuple(data.input_shape):
            raise SurgeryError(
                f"mimic: the transfer set has inputs {list(shape)}, {data.name} {list(data.input_shape)}"
            )
    work = _Mimicking(student, teachers, data, plan, transfer, cache, run, reporter, made)
    graph = work.go()
    return graph, replace(work.outcome(), seconds=time.perf_counter() - began)


class _Mimicking:
    """One mimicry in progress."""

    def __init__(
        self,
        student: ModelGraph,
        teachers: Mapping[str, nn.Module],
        data: Data,
        plan: MimicPlan,
        transfer: Dataset[Any] | None,
        cache: Path | None,
        run: Run | None,
        reporter: Reporter | None,
        made: Callable[[ModelGraph], None] | None,
    ) -> None:
        self.made = made
        self.student, self.members, self.data, self.plan = student, teachers, data, plan
        self.transfer, self.cache, self.run, self.reporter = transfer, cache, run, reporter
        self.teachers = Teachers(list(teachers.values()))
        self.objective = objective_for(data)
        self.rows: list[Row] = []
        self.curves: list[EpochRecord] = []
        self.checks: list[Check] = []
        self.best = "ensemble" if len(teachers) > 1 else next(iter(teachers))

    def go(self) -> ModelGraph:
        """All steps, in order."""
        network = self._narrowed()
        for name, teacher in self.members.items():
            self._row(name, teacher)
        if len(self.members) > 1:
            self._row("ensemble", self.teachers, note="the teachers' logits, averaged")
        control, place = self._copy() if self.plan.control else None, len(self.rows)
        dataset, spread = self._answers()
        objective = Mimicry(self.data.classes, self.plan.imitation, spread=spread)
        self._fit(network, dataset, objective, "mimic")
        result = self._widened(network)
        examples = len(dataset)  # type: ignore[arg-type]
        self._row("mimic", result, note=f"{examples:,} answered examples, {self._agreement(result)}")
        record = {"pass": "mimic", "teachers": list(self.members), **recorded(self.data)}
        result = replace(result, lineage=(*result.lineage, {**record, "plan": asdict(self.plan)}))
        if self.made is not None:
            self.made(result)
        if control is not None:
            self._fit(control, self.data.train, self.objective, "labels")
            self._row("student on labels", control, note=self._agreement(control))
            self.rows.insert(place, self.rows.pop())  # in the table the control stands before what it controls
        return result

    def _answers(self) -> tuple[Dataset[Any], Tensor | None]:
        """The transfer set with the teachers' logits, and the deviation of each class."""
        parts = [augmented(self.data.train, self.plan.copies, self.plan.training.seed)]
        parts += [] if self.transfer is None else [unlabelled(self.transfer)]
        device = self.plan.training.device
        logits = [logits_of(self.teachers, part, self.cache, device=device) for part in parts]
        whole = [answered(part, found) for part, found in zip(parts, logits, strict=True)]
        spread = torch.cat(logits).std(0).clamp_min(1e-6) if self.plan.standardise else None
        return whole[0] if len(whole) == 1 else torch.utils.data.ConcatDataset(whole), spread

    def _copy(self) -> ModelGraph:
        return replace(self.student, module=copy.deepcopy(self.student.module))

    def _narrowed(self) -> ModelGraph:
        """The student as it trains: with a bottleneck in its largest linear layer, if the plan has one."""
        if self.plan.bottleneck is None:
            return self._copy()
        layers = {
            str(n.target): module
            for n in self.student.module.graph.nodes
            if n.op == "call_module"
            and isinstance(module := self.student.module.get_submodule(str(n.target)), nn.Linear)
        }
        if not layers:
            raise SurgeryError("mimic: a bottleneck needs a linear layer, and the student has none")
        largest = max(layers, key=lambda path: layers[path].weight.numel())
        rank = self.plan.bottleneck
        return factorize(
            self.student, [largest], rank={largest: rank}, how="random", force=True, seed=self.plan.training.seed
        )

    def _widened(self, network: ModelGraph) -> ModelGraph:
        """The student as it is delivered: the two factors multiplied to one layer."""
        if self.plan.bottleneck is None:
            return network
        note = f"factors of {self.plan.bottleneck} channels, {self._agreement(network)}"
        self._row("mimic with its bottleneck", network, note=note)
        if self.plan.keep_bottleneck:
            return network
        one = unfactorize(network)
        before, after = double(network), double(unfactorize(double(network)))
        x = before.example_inputs(4)
        with torch.no_grad():
            self.checks.append(Check("multiplied back = with bottleneck", deviation(after(*x), before(*x)), ALLOWED))
        return one

    def _fit(self, graph: ModelGraph, dataset: Dataset[Any], objective: Objective, stage: str) -> None:
        history = fit(
            graph.module,
            dataset,
            self.plan.training,
            objective=objective,
            validation=self.data.validation,
            run=self.run,
            stage=stage,
            reporter=self.reporter,
        )
        self.curves.extend(history.records)

    def _agreement(self, graph: ModelGraph) -> str:
        """How often a student and its teachers have the same first class, on validation data."""
        if self.data.classes is None:
            return ""
        device = choose_device(self.plan.training.device)
        examples = Examples(self.data.validation, device)
        same = 0
        with placed(graph.module, device), placed(self.teachers, device), evaluating(graph.module), torch.no_grad():
            for batch in examples.batches(in_order(len(examples), 256)):
                answers = one_output(graph.module(batch[0]), "the student"), self.teachers(batch[0])
                same += int((answers[0].argmax(1) == answers[1].argmax(1)).sum())
        return f"agrees with the teachers on {same / len(examples):.1%}"

    def _row(self, name: str, network: ModelGraph | nn.Module, note: str = "") -> None:
        module = network.module if isinstance(network, ModelGraph) else network
        size = cost(network) if isinstance(network, ModelGraph) else None
        parameters = sum(p.numel() for p in module.parameters()) or None
        device = self.plan.training.device
        self.rows.append(
            Row(
                name,
                test=evaluate(module, self.data.test, self.objective, device=device),
                validation=evaluate(module, self.data.validation, self.objective, device=device),
                parameters=size.parameters if size else parameters,
                macs=size.macs if size else None,
                note=note,
            )
        )

    def outcome(self) -> Outcome:
        """What was found out."""
        score, higher = self.objective.score, self.objective.higher_is_better
        return Outcome(
            title=f"{self.best} mimicked on {self.data.name}",
            rows=tuple(self.rows),
            metric=score,
            higher_is_better=higher,
            curves=tuple(self.curves),
            checks=tuple(self.checks),
            verdict=self._verdict(score, higher),
            config={"teachers": list(self.members), **asdict(self.plan)},
        )

    def _verdict(self, score: str, higher: bool) -> str:
        scores = {row.name: row.test[score] for row in self.rows}
        others = {f"its teacher ({self.best})": scores[self.best]}
        if "student on labels" in scores:
            others["the same student on labels"] = scores["student on labels"]
        sentence = comparison("the mimic", scores["mimic"], others, score, higher)
        warning = hopeless(self.rows, self.best, score, higher, self.plan.margin)
        return f"{sentence} {warning}".strip()


def hopeless(rows: Sequence[Row], best: str, score: str, higher: bool, margin: float) -> str:
    """Why mimicry cannot help, if the teachers do not beat the student on labels by a margin on validation data."""
    found = {row.name: row.validation[score] for row in rows}
    if "student on labels" not in found:
        return ""
    gain = (found[best] - found["student on labels"]) * (1 if higher else -1)
    if gain > margin:
        return ""
    return (
        f"The teachers do not beat the student on labels by more than {margin:g} on validation data "
        f"({found[best]:.4g} against {found['student on labels']:.4g}), so mimicry cannot be expected to help."
    )

"""Mimic: a student learns what its teachers say about examples that need no labels.

The teachers' logits are computed once. Next to the student stand the teachers, their ensemble, and the same student
trained on labels: where the teachers are no better than that one, mimicry cannot help, and the verdict says so.

Source: Ba & Caruana, "Do deep nets really need to be deep?", arXiv:1312.6184.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.network.outputs.naming import one_output
from graphsurgery.passes.factorize import factorize, unfactorize
from graphsurgery.recipes.contracts.edit_checks import unchanged
from graphsurgery.recipes.experiment import Experiment
from graphsurgery.recipes.mimicking.plan import MimicPlan
from graphsurgery.recipes.outcome import Outcome, Result, Row, comparison
from graphsurgery.training.data.batches import Examples, in_order
from graphsurgery.training.data.dataset import Data, size_of
from graphsurgery.training.data.loading import check_fits, recorded
from graphsurgery.training.data.transfer import answered, augmented, unlabelled
from graphsurgery.training.devices import choose_device, placed
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives.imitation import Mimicry
from graphsurgery.training.objectives.tasks import Objective
from graphsurgery.training.objectives.teachers import Teachers, logits_of

CONTROL = "student on labels"
"""The row of the control."""


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
) -> Result[Outcome]:
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
        CheckFailedError: the factors of the bottleneck do not multiply back; the student is not given out then.
    """
    if not teachers:
        raise SurgeryError("mimic: no teacher; give one or more")
    if data.classes is None:
        plan.check_not_of_classes(f"{data.name} has no classes")
    check_fits(data, student.module, name="the student")
    for name, teacher in teachers.items():
        check_fits(data, teacher, name=name)
    if transfer is not None:
        shape = tuple(torch.as_tensor(transfer[0][0]).shape)
        if shape != tuple(data.input_shape):
            raise SurgeryError(
                f"mimic: the transfer set has inputs {list(shape)}, {data.name} {list(data.input_shape)}"
            )
    books = Experiment(data, device=plan.training.device, run=run, reporter=reporter)
    work = _Mimicking(student, teachers, plan, books)
    graph = work.go(transfer, cache, made)
    config = {"teachers": list(teachers), **asdict(plan)}
    return Result(graph, books.outcome(f"{work.best} mimicked on {data.name}", work.verdict(), config))


class _Mimicking:
    """One mimicry in progress."""

    def __init__(
        self, student: ModelGraph, teachers: Mapping[str, nn.Module], plan: MimicPlan, books: Experiment
    ) -> None:
        self.student, self.members, self.plan, self.books = student, teachers, plan, books
        self.teachers = Teachers(list(teachers.values()))
        self.best = "ensemble" if len(teachers) > 1 else next(iter(teachers))

    def go(
        self, transfer: Dataset[Any] | None, cache: Path | None, made: Callable[[ModelGraph], None] | None
    ) -> ModelGraph:
        """All steps, in order."""
        books, training = self.books, self.plan.training
        network = self._narrowed()
        for name, teacher in self.members.items():
            books.measure(name, teacher)
        if len(self.members) > 1:
            books.measure("ensemble", self.teachers, note="the teachers' logits, averaged")
        control, place = self.student.copy() if self.plan.control else None, len(books.rows)
        dataset, spread = self._answers(transfer, cache)
        objective = Mimicry(books.data.classes, self.plan.imitation, spread=spread)
        books.train(network, training, "mimic", objective=objective, dataset=dataset)
        result = self._widened(network)
        books.measure("mimic", result, note=f"{size_of(dataset):,} answered examples, {self._agreement(result)}")
        record = {"pass": "mimic", "teachers": list(self.members), **recorded(books.data)}
        result = replace(result, lineage=(*result.lineage, {**record, "plan": asdict(self.plan)}))
        if made is not None:
            made(result)
        if control is not None:
            books.train(control, training, "labels")
            books.measure(CONTROL, control, note=self._agreement(control))
            books.rows.insert(place, books.rows.pop())  # in the table it stands before what it controls
        return result

    def _answers(self, transfer: Dataset[Any] | None, cache: Path | None) -> tuple[Dataset[Any], Tensor | None]:
        """The transfer set with the teachers' logits, and the deviation of each class."""
        parts = [augmented(self.books.data.train, self.plan.copies, self.plan.training.seed)]
        parts += [] if transfer is None else [unlabelled(transfer)]
        device = self.plan.training.device
        logits = [logits_of(self.teachers, part, cache, device=device) for part in parts]
        whole = [answered(part, found) for part, found in zip(parts, logits, strict=True)]
        spread = torch.cat(logits).std(0).clamp_min(1e-6) if self.plan.standardise else None
        return whole[0] if len(whole) == 1 else torch.utils.data.ConcatDataset(whole), spread

    def _narrowed(self) -> ModelGraph:
        """The student as it trains: with a bottleneck in its largest linear layer, if the plan has one."""
        if self.plan.bottleneck is None:
            return self.student.copy()
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
        self.books.measure("mimic with its bottleneck", network, note=note)
        if self.plan.keep_bottleneck:
            return network
        one = unfactorize(network)
        self.books.require(unchanged("multiplied back = with bottleneck", network, one))
        return one

    def _agreement(self, graph: ModelGraph) -> str:
        """How often a student and its teachers have the same first class, on validation data."""
        if self.books.data.classes is None:
            return ""
        device = choose_device(self.plan.training.device)
        examples = Examples(self.books.data.validation, device)
        same = 0
        with placed(graph.module, device), placed(self.teachers, device), evaluating(graph.module), torch.no_grad():
            for batch in examples.batches(in_order(len(examples), 256)):
                answers = one_output(graph.module(batch[0]), "the student"), self.teachers(batch[0])
                same += int((answers[0].argmax(1) == answers[1].argmax(1)).sum())
        return f"agrees with the teachers on {same / len(examples):.1%}"

    def verdict(self) -> str:
        """One sentence on whether mimicry paid, by the test metric; and why it cannot, if so."""
        scores = self.books.scores()
        others = {f"its teacher ({self.best})": scores[self.best]}
        if CONTROL in scores:
            others["the same student on labels"] = scores[CONTROL]
        sentence = comparison("the mimic", scores["mimic"], others, self.books.objective)
        return f"{sentence} {hopeless(self.books.rows, self.best, self.books.objective, self.plan.margin)}".strip()


def hopeless(rows: Sequence[Row], best: str, objective: Objective, margin: float) -> str:
    """Why mimicry cannot help, if the teachers do not beat the student on labels by a margin on validation data."""
    found = {row.name: row.validation[objective.score] for row in rows}
    if CONTROL not in found:
        return ""
    gain = (found[best] - found[CONTROL]) * (1 if objective.higher_is_better else -1)
    if gain > margin:
        return ""
    return (
        f"The teachers do not beat the student on labels by more than {margin:g} on validation data "
        f"({found[best]:.4g} against {found[CONTROL]:.4g}), so mimicry cannot be expected to help."
    )

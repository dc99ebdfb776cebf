"""Merge teachers of different tasks: one backbone, of the size of one parent, with the head of each.

The parents stand side by side, and the layer of their heads reads the channels of all. It learns every task with a loss
of its own, from labels and from what the parent of that task says; its channels of least weight go, and the rest learns
what it said. It is the joint recipe with several tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.network.outputs.naming import named_outputs, one_output, run
from graphsurgery.passes.concatenate import side_by_side
from graphsurgery.recipes.experiment import Experiment
from graphsurgery.recipes.merging.merge import check_parents, merge, verdict
from graphsurgery.recipes.merging.plan import CONTROL, PARENT, MergePlan, default_plan
from graphsurgery.recipes.merging.work import Merging
from graphsurgery.recipes.outcome import Check, Outcome, Result
from graphsurgery.surgery.deviation import InDouble, apart
from graphsurgery.surgery.growth.fresh_weights import reinitialized
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.loop.evaluation import evaluate
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives.several_tasks import SeveralTasks, in_one, of_all, padded
from graphsurgery.training.objectives.tasks import objective_for
from graphsurgery.training.objectives.teachers import Teachers, logits_of


class OwnHeads(nn.Module):
    """The outputs of several networks for one input, in a tuple."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(one_output(member(x), "a parent") for member in self.members)


def check_tasks(parents: Sequence[ModelGraph], tasks: Sequence[Data], names: Sequence[str]) -> None:
    """Check that all parents take the data and are of one topology; or each its own, where there are several.

    Raises:
        SurgeryError: one does not.
    """
    if len(tasks) == 1:
        check_parents(parents, tasks[0], names)
        return
    for name, parent, task in zip(names, parents, tasks, strict=True):
        check_parents([parent], task, [name])


def merge_tasks(
    parents: Sequence[ModelGraph],
    tasks: Sequence[Data],
    plan: MergePlan | None = None,
    *,
    run: Run | None = None,
    reporter: Reporter | None = None,
    made: Callable[[ModelGraph], None] | None = None,
) -> Result[Outcome]:
    """`merge` on one task, `merge_heads` on several; see there."""
    if len(tasks) == 1:
        return merge(parents, tasks[0], plan, run=run, reporter=reporter, made=made)
    return merge_heads(parents, tasks, plan, run=run, reporter=reporter, made=made)


def merge_heads(
    parents: Sequence[ModelGraph],
    tasks: Sequence[Data],
    plan: MergePlan | None = None,
    *,
    run: Run | None = None,
    reporter: Reporter | None = None,
    made: Callable[[ModelGraph], None] | None = None,
) -> Result[Outcome]:
    """Merge networks of one backbone, trained for different tasks, into one that has all of their heads.

    Args:
        parents: two or more typed networks of one topology, but for the number of their classes. They are not modified.
        tasks: what each was trained on, with inputs of one shape; selection looks at `validation`.
        plan: how; by default the joint `default_plan` of the parents. Of its controls there is `longer`: one new
            network with all heads, trained as long as everything together.
        run: folder for metrics and states; an interrupted merge goes on from it.
        reporter: told about progress.
        made: given the merged network as soon as it is there, before the control is trained.

    Returns:
        The merged network, which gives a tuple of logits in the order of the tasks, and what was found out.

    Raises:
        SurgeryError: there is not one task for each parent, a task has no classes, the parents do not fit together or
            do not fit their data, or training fails.
        CheckFailedError: a pass does not hold its contract on these networks.
    """
    plan = plan or default_plan(parents, by="joint")
    if len(tasks) != len(parents):
        raise SurgeryError(f"merge: {len(parents)} parents have {len(tasks)} tasks; give the data of each")
    if plan.by != "joint":
        raise SurgeryError(f"merge: --heads both trains the parents together; --by {plan.by} keeps one head, use joint")
    check_tasks(parents, tasks, [f"parent {position}" for position, _ in enumerate(parents, 1)])
    return _Heads(parents, tasks, plan, run, reporter).merged(made)


class _Heads:
    """One merge of several tasks in progress."""

    def __init__(
        self,
        parents: Sequence[ModelGraph],
        tasks: Sequence[Data],
        plan: MergePlan,
        run: Run | None,
        reporter: Reporter | None,
    ) -> None:
        self.parents, self.tasks, self.plan = parents, tasks, plan
        self.classes = [data.classes or 0 for data in tasks]
        data, objective = of_all(tasks), SeveralTasks(self.classes)
        device = plan.fine_tuning.device
        self.books = Experiment(data, device=device, run=run, reporter=reporter, objective=objective)
        self.work = Merging(parents, plan, self.books)

    def merged(self, made: Callable[[ModelGraph], None] | None) -> Result[Outcome]:
        """The merged network, and what was found out."""
        books, work, plan = self.books, self.work, self.plan
        own = OwnHeads([parent.module for parent in self.parents])
        books.measure(f"{PARENT}of each task", own, work.all_parents, self._by_task(own))
        big = side_by_side(self.parents)
        books.require(self._check(big))
        self._train(big, "joint", plan.wide.epochs, own)
        small, why = work.cut(big, work.targets(big))
        books.measure("cut", small, work.spent, f"not exact: {why}" if why else "")
        work.recalibrated(small)
        new = reinitialized(small, plan.seed + 1000)
        self._train(small, "fine-tune", plan.fine_tuning.epochs, big.module)
        graph = work.lineage(small, tasks=[data.name for data in self.tasks])
        books.measure("merged", graph, work.spent, self._by_task(graph.module))
        if made is not None:
            made(graph)
        if "longer" in plan.controls:
            self._control(new)
        outcome = books.outcome(
            f"{len(self.parents)} networks of different tasks merged on {books.data.name}",
            verdict(books.rows, books.objective),
            asdict(plan),
            origins=work.origins,
        )
        return Result(graph, outcome)

    def _check(self, big: ModelGraph) -> Check:
        """The contract of the networks side by side: each output is its parent's."""
        x = big.example_inputs(4, seed=self.plan.seed)
        found = list(run(InDouble(big), x, self.plan.seed).values())
        expected = [next(iter(run(InDouble(parent), x, self.plan.seed).values())) for parent in self.parents]
        pairs = [apart({"0": a}, {"0": b}) for a, b in zip(found, expected, strict=True)]
        return Check("side by side = each parent", max(pairs), 1e-6)

    def _train(self, graph: ModelGraph, stage: str, epochs: int, teacher: nn.Module) -> None:
        """Train a network on labels and on what another says about every task, and write its row."""
        books, plan = self.books, self.plan
        objective: SeveralTasks = SeveralTasks(self.classes, plan.imitation)
        examples = in_one([data.train for data in self.tasks], self._answers(teacher))
        training = replace(plan.wide if stage == "joint" else plan.fine_tuning, epochs=epochs, seed=plan.seed)
        _, effort = books.train(graph, training, stage, objective=objective, dataset=examples)
        self.work.spent += effort
        if stage == "joint":
            books.measure("joint", graph, self.work.spent, self._by_task(graph.module))

    def _control(self, new: ModelGraph) -> None:
        """One new network with all heads, trained on labels as long as everything together."""
        books, plan = self.books, self.plan
        epochs = round(self.work.spent.epochs or plan.wide.epochs + plan.fine_tuning.epochs)
        training = replace(plan.fine_tuning, epochs=epochs, seed=plan.seed + 1000)
        _, effort = books.train(new, training, "control-longer")
        books.measure(f"{CONTROL}longer", new, effort, self._by_task(new.module))

    def _answers(self, teacher: nn.Module) -> Tensor:
        """What a network with all heads says about every training example, by the head of its task."""
        most = max(self.classes)
        with evaluating(teacher):
            found = [
                logits_of(Teachers([_Head(teacher, number)]), data.train, device=self.books.device)
                for number, data in enumerate(self.tasks)
            ]
        return torch.cat([padded(logits, most) for logits in found])

    def _by_task(self, module: nn.Module) -> str:
        """The test accuracy on each task, in words."""
        scores = []
        for number, data in enumerate(self.tasks):
            test = evaluate(_Head(module, number), data.test, objective_for(data), device=self.books.device)
            scores.append(f"{data.name} {100 * test['accuracy']:.2f} %")
        return ", ".join(scores)


class _Head(nn.Module):
    """One output of a network."""

    def __init__(self, module: nn.Module, number: int) -> None:
        super().__init__()
        self.module, self.number = module, number

    def forward(self, x: Tensor) -> Tensor:
        return list(named_outputs(self.module(x)).values())[self.number]

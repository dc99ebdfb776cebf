"""Merge: one network, of the size of one parent, out of several trained ones.

Concatenate the parents, put gates on every space, close the gates to the budget while the network trains, cut what is
closed, recalibrate BatchNorm, fine-tune. Every step is measured, next to the networks that it has to beat.

Source: Pašen & Boža, "Merging of neural networks", arXiv:2204.09973, Neural Processing Letters 2024; with the repairs
that docs/architecture.md lists.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.spec_text import is_function_spec, parse_spec
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.deepen import as_deep
from graphsurgery.passes.gate import gate
from graphsurgery.recipes.compression.shrink import recovery
from graphsurgery.recipes.contracts.edit_checks import check_cut, check_mean, unchanged
from graphsurgery.recipes.outcome import Check, GateEpoch, Outcome, Row, at_chance, comparison, required
from graphsurgery.recipes.train import fresh
from graphsurgery.surgery.channels.cost import cost
from graphsurgery.surgery.deviation import deviation, double
from graphsurgery.surgery.gates import gates
from graphsurgery.surgery.growth.fresh_weights import reinitialized
from graphsurgery.surgery.merging.averages import Ensemble, average
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.data.loading import check_fits, recorded
from graphsurgery.training.loop.evaluation import evaluate, recalibrate
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan, recorded_plan
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import EpochRecord, History, Run
from graphsurgery.training.objectives.gating import GateBudget
from graphsurgery.training.objectives.tasks import objective_for

_GUESSES = "no better than guessing: is it trained, and on this data?"
_GATING = TrainingPlan(epochs=20, lr=0.01, schedule="constant")
_FINE_TUNING = TrainingPlan(epochs=20, lr=0.03, schedule="cosine")


@dataclass(frozen=True)
class MergePlan:
    """How to merge.

    Attributes:
        gating: how the concatenated network trains while its gates close.
        fine_tuning: how the cut network trains.
        gate_lr: learning rate of the gates, constant and without decay.
        budget: size of every space of the result, as a multiple of the first parent's.
        control: also train one new network for as many epochs as everything together took.
        parent_epochs: how long each parent was trained; None reads it from the parents' lineage.
        recover: what fine-tuning learns from: `labels`, or `mimic`, what the parents say together, without labels.
        seed: of gates, shuffles and the control's weights.
    """

    gating: TrainingPlan = _GATING
    fine_tuning: TrainingPlan = _FINE_TUNING
    gate_lr: float = 0.5
    budget: float = 1.0
    control: bool = True
    parent_epochs: float | None = None
    recover: str = "labels"
    seed: int = 0


def default_plan(parents: Sequence[ModelGraph], seed: int = 0) -> MergePlan:
    """A plan for these parents: both stages train as long as the first parent did, as it did.

    The gates close at 0.3 times its learning rate, held constant; fine-tuning follows its whole schedule. Parents
    whose lineage does not tell their training get the defaults of `MergePlan`.
    """
    recipe = _training_record(parents[0])
    if recipe is None:
        return MergePlan(seed=seed)
    trained = recorded_plan(recipe)
    gating = replace(trained, lr=0.3 * trained.lr, schedule="constant", warmup=0.0, keep_best=False)
    return MergePlan(gating=gating, fine_tuning=trained, seed=seed)


@dataclass(frozen=True)
class Merged:
    """The merged network and everything that was found out on the way."""

    graph: ModelGraph
    outcome: Outcome


def merge(
    parents: Sequence[ModelGraph],
    data: Data,
    plan: MergePlan | None = None,
    *,
    run: Run | None = None,
    reporter: Reporter | None = None,
    made: Callable[[ModelGraph], None] | None = None,
) -> Merged:
    """Merge trained networks of one topology into one.

    Args:
        parents: two or more typed networks; widths may differ. They are not modified. Where one has more blocks than
            another of its family, the shallower is deepened first; its outputs stay.
        data: selection looks at `data.validation`; `data.test` is only measured.
        plan: how; by default `default_plan` of the parents.
        run: folder for metrics and states; an interrupted merge goes on from it.
        reporter: told about progress.
        made: given the merged network as soon as it is there, before the control is trained.

    Raises:
        SurgeryError: the parents do not fit together or do not fit the data, the control cannot be built, or training
            fails.
        CheckFailedError: a pass does not hold its contract on these networks: the deepened parents, the concatenated
            network, the gated or the cut one; what comes after it is not trained. Gates that do not close to the
            budget are a row of the outcome.
    """
    plan = plan or default_plan(parents)
    deep = as_deep(parents)
    checks = deepened(parents, deep)
    parents = deep
    if not plan.budget > 0:
        raise SurgeryError(f"merge: budget is {plan.budget:g}, expected a multiple of the first parent's size above 0")
    began = time.perf_counter()
    for position, parent in enumerate(parents, 1):
        check_fits(data, parent.module, name=f"parent {position}")
    work = _Merge(parents, data, plan, run, reporter, made)
    work.checks += [required(check) for check in checks]
    graph = work.go()
    return Merged(graph, replace(work.outcome(), seconds=time.perf_counter() - began))


def deepened(before: Sequence[ModelGraph], after: Sequence[ModelGraph]) -> list[Check]:
    """The contract of each parent that has become deeper."""
    pairs = zip(before, after, strict=True)
    return [
        unchanged(f"deepened = original, parent {position}", old, new)
        for position, (old, new) in enumerate(pairs, 1)
        if new is not old
    ]


class _Merge:
    """One merge in progress: the parents, the books, and the steps."""

    def __init__(
        self,
        parents: Sequence[ModelGraph],
        data: Data,
        plan: MergePlan,
        run: Run | None,
        reporter: Reporter | None,
        made: Callable[[ModelGraph], None] | None,
    ) -> None:
        self.parents, self.data, self.plan, self.run, self.reporter = parents, data, plan, run, reporter
        self.made = made
        self.objective = objective_for(data)
        self.rows: list[Row] = []
        self.checks: list[Check] = []
        self.guessing: list[str] = []
        self.curves: list[EpochRecord] = []
        self.gate_epochs: list[GateEpoch] = []
        self.origins: dict[str, tuple[int, ...]] = {}
        known = [_trained_epochs(parent) for parent in parents]
        self.parent_epochs = [plan.parent_epochs if plan.parent_epochs is not None else e for e in known]
        self.spent = sum(e or 0 for e in self.parent_epochs)

    def go(self) -> ModelGraph:
        """All steps, in order."""
        # What cannot be built is found before anything is trained.
        control = self._new_control() if self.plan.control else None
        self._measure_parents()
        big = self._concatenate()
        gated = self._close_gates(big)
        small = self._cut(big, gated)
        self._recalibrate(small)
        merged = self._fine_tune(small)
        if self.made is not None:
            self.made(merged)
        if control is not None:
            self._train_control(*control)
        return merged

    def _measure_parents(self) -> None:
        for position, parent in enumerate(self.parents, 1):
            self._row(f"parent {position}", parent, self.parent_epochs[position - 1])
            if at_chance(self.rows[-1].validation, self.data.classes, len(self.data.validation)):  # type: ignore[arg-type]
                self.guessing.append(self.rows[-1].name)
                self.rows[-1] = replace(self.rows[-1], note=_GUESSES)
        ensemble = Ensemble([parent.module for parent in self.parents])
        self._row("ensemble", ensemble, self.spent, note="the parents' outputs, averaged")
        try:
            self._row("weight average", average(self.parents), self.spent, note="no alignment of channels")
        except SurgeryError:
            return

    def _concatenate(self) -> ModelGraph:
        big = concatenate(self.parents)
        self.checks.append(required(check_mean(self.parents, big, self.plan.seed)))
        self._row("concatenated", big, self.spent)
        return big

    def _close_gates(self, big: ModelGraph) -> ModelGraph:
        gated = gate(big, seed=self.plan.seed)
        probe, wide_open = self._probe(), double(gated)
        for module in gates(wide_open).values():
            module.loc.data.fill_(50.0)
        self._check("gates open = no gates", wide_open(probe), double(big)(probe), 1e-12)
        targets = self._targets(big)
        modules = gates(gated)
        budgets = {name: targets[name] / modules[name].channels for name in modules}
        objective = GateBudget(self.objective, modules, budgets, lr=self.plan.gate_lr)
        groups = [
            {
                "params": [module.loc for module in modules.values()],
                "lr": self.plan.gate_lr,
                "weight_decay": 0.0,
                "momentum": 0.0,
                "schedule": "constant",
                "name": "gates",
            }
        ]
        plan = replace(self.plan.gating, keep_best=False, seed=self.plan.seed)
        history = self._fit(gated.module, plan, "gates", objective, groups)
        self.gate_epochs = [_gate_epoch(record, budgets, modules) for record in history.records]
        self.spent += plan.epochs
        self._row("gated", gated, self.spent, note="gates closed, not yet cut")
        gap = history.records[-1].extra["largest gap"] if history.records else 1.0
        self.checks.append(Check("expected open share = budget, in every space", gap, 0.01))
        return gated

    def _targets(self, big: ModelGraph) -> dict[str, int]:
        """How many channels each outer space shall have."""
        first = {space.name: space.size for space in self.parents[0].spaces}
        targets = {}
        for space in big.spaces:
            if space.outer:
                size = first.get(space.name, space.size // len(self.parents))
                targets[space.name] = min(space.size, max(1, round(size * self.plan.budget)))
        return targets

    def _cut(self, big: ModelGraph, gated: ModelGraph) -> ModelGraph:
        targets, modules = self._targets(big), gates(gated)
        kept: dict[str, Any] = dict(targets)
        for name, module in modules.items():
            kept[name] = module.loc.detach().cpu().topk(targets[name]).indices.sort().values
            self.origins[name] = self._origin(name, kept[name])
        small = compress(gated, kept)
        found = check_cut(gated, small, self.plan.seed)
        if found.check is not None:
            self.checks.append(required(replace(found.check, name="cut = gates closed")))
        self._row("cut", small, self.spent, note=f"not exact, as {found.why}" if found.why else "")
        return small

    def _origin(self, name: str, kept: Tensor) -> tuple[int, ...]:
        """How many of these channels came from each parent."""
        counts, start = [], 0
        for parent in self.parents:
            size = next((s.size for s in parent.spaces if s.name == name), 0)
            counts.append(int(((kept >= start) & (kept < start + size)).sum()))
            start += size
        return tuple(counts)

    def _recalibrate(self, small: ModelGraph) -> None:
        norms = recalibrate(small.module, self.data.train, seed=self.plan.seed, device=self.plan.fine_tuning.device)
        note = f"{norms} BatchNorms, 1,000 images" if norms else "it has no BatchNorm"
        self._row("recalibrated", small, self.spent, note=note)

    def _fine_tune(self, small: ModelGraph) -> ModelGraph:
        plan = replace(self.plan.fine_tuning, seed=self.plan.seed)
        self._fit(small.module, plan, "fine-tune", recovery(self.plan.recover, self.data, self.parents))
        self.spent += plan.epochs
        source = "" if self.plan.recover == "labels" else " on what the parents say"
        self._row("merged", small, self.spent, note=f"fine-tuned{source}")
        record = {
            "pass": "merge",
            "parents": len(self.parents),
            **recorded(self.data),
            "plan": asdict(self.plan),
        }
        return replace(small, lineage=(*small.lineage, record))

    def _new_control(self) -> tuple[ModelGraph, TrainingPlan, str]:
        """One new network, how it is trained but for the epochs, and what its row says."""
        recipe = _training_record(self.parents[0])
        if recipe is None or None in self.parent_epochs:
            note = "the parents' training is unknown; trained as the fine-tuning, parents counted as 0 epochs"
            graph = reinitialized(self.parents[0], self.plan.seed + 1)
            return graph, replace(self.plan.fine_tuning, seed=self.plan.seed + 1), note
        seed = self.plan.seed + 1000
        plan = recorded_plan(recipe, device=self.plan.gating.device, seed=seed)
        spec = str(recipe.get("spec"))
        if is_function_spec(parse_spec(spec).name):
            # A checkpoint must not choose which Python file is executed.
            note = "the first parent with new weights, trained as long as everything together"
            return reinitialized(self.parents[0], seed), plan, note
        try:
            graph = fresh(spec, self.data, seed)
        except SurgeryError as cause:
            raise type(cause)(
                f"merge: the control cannot be built as the first parent was: {cause}; or leave it out: --no-control"
            ) from cause
        return graph, plan, "one network, trained as long as everything together"

    def _train_control(self, graph: ModelGraph, plan: TrainingPlan, note: str) -> None:
        """Train the control for as many epochs as everything together took."""
        self._fit(graph.module, replace(plan, epochs=int(self.spent)), "control", self.objective)
        self._row("control", graph, self.spent, note=note)

    def _fit(self, module: nn.Module, plan: TrainingPlan, stage: str, objective: Any, groups: Any = None) -> History:
        history = fit(
            module,
            self.data.train,
            plan,
            objective=objective,
            validation=self.data.validation,
            run=self.run,
            stage=stage,
            param_groups=groups,
            reporter=self.reporter,
        )
        self.curves.extend(history.records)
        return history

    def _row(self, name: str, network: ModelGraph | nn.Module, epochs: float | None, note: str = "") -> None:
        module = network.module if isinstance(network, ModelGraph) else network
        device = self.plan.gating.device
        size = cost(network) if isinstance(network, ModelGraph) else None
        self.rows.append(
            Row(
                name,
                test=evaluate(module, self.data.test, self.objective, device=device),
                validation=evaluate(module, self.data.validation, self.objective, device=device),
                parameters=size.parameters if size else None,
                macs=size.macs if size else None,
                epochs=epochs,
                note=note,
            )
        )

    def _check(self, name: str, found: Tensor, expected: Tensor, allowed: float) -> None:
        self.checks.append(required(Check(name, deviation(found, expected), allowed)))

    def _probe(self) -> Tensor:
        """A few real inputs, float64."""
        count = min(8, len(self.data.validation))  # type: ignore[arg-type]
        return torch.stack([self.data.validation[i][0] for i in range(count)]).double()

    def outcome(self) -> Outcome:
        score = self.objective.score
        return Outcome(
            title=f"{len(self.parents)} networks merged on {self.data.name}",
            rows=tuple(self.rows),
            metric=score,
            higher_is_better=self.objective.higher_is_better,
            curves=tuple(self.curves),
            gates=tuple(self.gate_epochs),
            origins=self.origins,
            checks=tuple(self.checks),
            verdict=f"{verdict(self.rows, score, self.objective.higher_is_better)}{_warning(self.guessing)}",
            config=asdict(self.plan),
        )


def _warning(guessing: Sequence[str]) -> str:
    """A sentence on parents that have nothing to give; empty where all have."""
    if not guessing:
        return ""
    names = " and ".join(guessing)
    return f" Warning: {names} {'is' if len(guessing) == 1 else 'are'} no better than guessing on this data."


def verdict(rows: Sequence[Row], metric: str, higher_is_better: bool) -> str:
    """One plain sentence on whether merging paid, by the test metric."""
    scores = {row.name: row.test[metric] for row in rows}
    merged = scores["merged"]
    sign = 1.0 if higher_is_better else -1.0
    best = max((v for n, v in scores.items() if n.startswith("parent")), key=lambda v: sign * v)
    against = {"the best parent": best}
    if "control" in scores:
        against["one network trained as long as everything together"] = scores["control"]
    return comparison("the merged network", merged, against, metric, higher_is_better)


def _gate_epoch(record: EpochRecord, budgets: Mapping[str, float], modules: Mapping[str, Any]) -> GateEpoch:
    channels = {name: module.channels for name, module in modules.items()}
    budget = sum(budgets[n] * channels[n] for n in channels) / sum(channels.values())
    spaces = {key.removeprefix("open "): value for key, value in record.extra.items() if key.startswith("open ")}
    return GateEpoch(record.epoch, record.extra["strength"], record.extra["expected"], budget, spaces)


def _training_record(graph: ModelGraph) -> Mapping[str, Any] | None:
    """The last training in a network's lineage."""
    return next((r for r in reversed(graph.lineage) if r.get("pass") == "train"), None)


def _trained_epochs(graph: ModelGraph) -> float | None:
    record = _training_record(graph)
    return None if record is None else float(recorded_plan(record).epochs)

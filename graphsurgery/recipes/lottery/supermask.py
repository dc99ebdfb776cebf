"""Supermasks: what a network computes whose weights were never trained, only chosen.

Source: Zhou et al., "Deconstructing lottery tickets", arXiv:1905.01067, sections 4 and 5. Criterion and density are
chosen on validation data. Besides the sampled score of the paper there is that of the thresholded mask, which is what
is delivered: one fixed network, with the rescaling folded into its weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.spec_text import anchored
from graphsurgery.models.supermasks import Supermask, prepare
from graphsurgery.network.randomness import seeded
from graphsurgery.passes.mask import mask
from graphsurgery.recipes.compression.shrink import with_gradients
from graphsurgery.recipes.contracts.edit_checks import unchanged
from graphsurgery.recipes.outcome import Check, Outcome, Row, required
from graphsurgery.recipes.train import fresh
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable
from graphsurgery.surgery.masks.selection import WEIGHT_CRITERIA, Selection, select
from graphsurgery.surgery.masks.training import parametrized
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.loop.evaluation import evaluate, recalibrate
from graphsurgery.training.loop.fit import fit
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import EpochRecord, Run
from graphsurgery.training.objectives.learned_masks import BernoulliMask, TopKMask
from graphsurgery.training.objectives.tasks import Objective, objective_for

METHODS = ("learned", "top-k", "heuristic")
DENSITIES = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)
DRAWS = 10


@dataclass(frozen=True)
class SupermaskPlan:
    """How a mask is found.

    Attributes:
        method: `learned` (Bernoulli), `top-k`, or `heuristic`, by criteria of a network that is trained for it.
        training: of the scores; with `heuristic`, of the network whose weights the criteria look at.
        constant: weights are the signs of the drawn ones times the standard deviation of their tensor.
        rescaled: living weights are multiplied by how many there are of each; with `heuristic` they are not.
        through_factor: see `BernoulliMask`.
        density: of `top-k`, in every tensor.
        criteria, densities: what `heuristic` tries.
    """

    method: str = "learned"
    training: TrainingPlan = field(default_factory=TrainingPlan)
    constant: bool = True
    rescaled: bool = True
    through_factor: bool = False
    density: float = 0.5
    criteria: tuple[str, ...] = tuple(WEIGHT_CRITERIA)
    densities: tuple[float, ...] = DENSITIES

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SurgeryError(f"supermask: method is {self.method!r}; choose from {', '.join(METHODS)}")
        for density in (self.density, *self.densities):
            if not 0 < density <= 1:
                raise SurgeryError(f"supermask: density is {density:g}, expected a share above 0 and at most 1")
        for criterion in self.criteria:
            Selection(criterion)


def supermask(
    spec: str, data: Data, plan: SupermaskPlan, *, run: Run | None = None, reporter: Reporter | None = None
) -> tuple[Supermask, Outcome]:
    """Find a mask for the weights that `plan.training.seed` draws.

    Args:
        spec: which network.
        data: what the masked network shall do; only measured on `data.test`.
        plan: how.
        run: folder for metrics and states; an interrupted run goes on from it.
        reporter: told about progress.

    Returns:
        The mask, and a table: untrained, sampled and thresholded networks, or the best density of every criterion.

    Raises:
        SurgeryError: a density that empties a tensor, the data do not fit, or training fails.
        CheckFailedError: what the seed and the mask give is not the network that was measured.
    """
    began = time.perf_counter()
    graph = fresh(spec, data, plan.training.seed)
    work = _Masking(spec, data, plan, graph, run, reporter)
    found = work.heuristic() if plan.method == "heuristic" else work.learned()
    outcome = Outcome(
        title=f"supermask of {spec} on {data.name}",
        rows=tuple(work.rows),
        metric=work.objective.score,
        higher_is_better=work.objective.higher_is_better,
        curves=work.curves,
        checks=work.checks,
        verdict=work.verdict,
        config={"spec": spec, "data": data.name, "plan": asdict(plan)},
        seconds=time.perf_counter() - began,
    )
    return found, outcome


class _Masking:
    """One search in progress."""

    def __init__(
        self,
        spec: str,
        data: Data,
        plan: SupermaskPlan,
        graph: ModelGraph,
        run: Run | None,
        reporter: Reporter | None,
    ) -> None:
        self.spec, self.data, self.plan, self.graph, self.run, self.reporter = spec, data, plan, graph, run, reporter
        self.objective: Objective = objective_for(data)
        self.rows: list[Row] = []
        self.curves: tuple[EpochRecord, ...] = ()
        self.checks: tuple[Check, ...] = ()
        self.verdict = ""

    def learned(self) -> Supermask:
        """Train the scores, and measure the mask in every form that it has."""
        graph, plan = self.graph, self.plan
        drawn = {name: t.detach().clone() for name, t in graph.tensors().items()}
        self._row("untrained", graph.module)
        weights = maskable(graph)
        prepare(graph, weights, constant=plan.constant)
        with seeded(plan.training.seed):
            parts = {name: self._part(name, weight) for name, weight in weights.items()}
        with _frozen(graph.module), parametrized(graph, parts) as module:
            history = fit(
                module,
                self.data.train,
                plan.training,
                objective=self.objective,
                validation=self.data.validation,
                run=self.run,
                stage="mask",
                reporter=self.reporter,
            )
            self.curves = history.records
            if plan.method == "learned":
                self._sampled(module, list(parts.values()))
            recalibrate(module, self.data.train, seed=plan.training.seed)
            self._row("thresholded" if plan.method == "learned" else "top-k", module, "one network; what is delivered")
            masks = MaskSet({name: part.mask().cpu() for name, part in parts.items()})
        rescaled = {name: living.numel() / max(1, int(living.sum())) for name, living in masks.items()}
        self.verdict = f"{100 * masks.density:.1f} % of the weights live"
        return self._found(masks, drawn, rescaled if plan.rescaled else {}, graph)

    def _part(self, name: str, weight: torch.Tensor) -> BernoulliMask | TopKMask:
        if self.plan.method == "learned":
            return BernoulliMask(weight, rescaled=self.plan.rescaled, through_factor=self.plan.through_factor)
        count = round(self.plan.density * weight.numel())
        if not count:
            raise SurgeryError(
                f"supermask: density {self.plan.density:g} of the {weight.numel()} weights of {name} is none; keep more"
            )
        return TopKMask(weight, count, rescaled=self.plan.rescaled)

    def _sampled(self, module: nn.Module, parts: list[BernoulliMask | TopKMask]) -> None:
        """The scores of the paper: a draw for each batch, once, and the mean over several such scores."""
        for part in parts:
            part.sampling = True
        found: list[dict[str, dict[str, float]]] = []
        with seeded(self.plan.training.seed):
            found = [self._measured(module) for _ in range(DRAWS)]
        for part in parts:
            part.sampling = False
        self._add("sampled", found[0], "a draw for each batch")
        score = self.objective.score
        mean = {
            split: {key: sum(one[split][key] for one in found) / DRAWS for key in found[0][split]}
            for split in ("validation", "test")
        }
        spread = torch.tensor([one["test"][score] for one in found], dtype=torch.float64).std()
        self._add("averaged", mean, f"mean of {DRAWS} such scores, deviation on test data {float(spread):.2g}")

    def heuristic(self) -> Supermask:
        """Train a network, and choose criterion and density for the weights that it had before."""
        graph, plan = self.graph, self.plan
        drawn = {name: t.detach().clone() for name, t in graph.tensors().items()}
        self._row("untrained", graph.module)
        needs_gradients = {"snip", "grad"} & set(plan.criteria)
        gradients = {
            name: w.grad for name, w in (maskable(with_gradients(graph, self.data)) if needs_gradients else {}).items()
        }
        history = fit(
            graph.module,
            self.data.train,
            plan.training,
            objective=self.objective,
            validation=self.data.validation,
            run=self.run,
            stage="dense",
            reporter=self.reporter,
        )
        self.curves = history.records
        self._row("trained", graph.module, "all weights, for comparison")
        first = fresh(self.spec, self.data, plan.training.seed)
        prepare(first, maskable(first), constant=plan.constant)
        best: list[tuple[float, MaskSet, str]] = []
        for criterion in plan.criteria:
            tried = []
            for density in plan.densities:
                chosen = Selection(criterion, output=1.0, seed=plan.training.seed)
                whole = MaskSet.ones(graph)
                masks = select(graph, whole, density, chosen, initial=drawn, gradients=_present(gradients))
                tried.append((self._score(mask(first, masks).module), density, masks))
            score, density, masks = max(tried, key=lambda one: one[0])
            best.append((score, masks, f"{criterion} at {100 * density:g} %"))
            self._row(criterion, mask(first, masks).module, f"{100 * density:g} % live")
        _, masks, words = max(best, key=lambda one: one[0])
        self.verdict = f"best on validation data: {words} of each tensor"
        return self._found(masks, drawn, {}, mask(first, masks))

    def _found(
        self,
        masks: MaskSet,
        drawn: Mapping[str, torch.Tensor],
        factors: Mapping[str, float],
        measured: ModelGraph,
    ) -> Supermask:
        """The mask, with what no seed draws; what they give is the network that was measured."""
        parameters = {name for name, _ in self.graph.module.named_parameters(remove_duplicate=False)}
        # A heuristic mask is for the untrained network, whose statistics are those of the start.
        now = {} if self.plan.method == "heuristic" else self.graph.tensors()
        buffers = {n: t for n, t in now.items() if n not in parameters and not torch.equal(t.cpu(), drawn[n].cpu())}
        found = Supermask(
            anchored(self.spec),
            self.plan.training.seed,
            self.data.input_shape,
            masks,
            self.plan.constant,
            factors,
            buffers,
            {"data": self.data.name, "method": self.plan.method, "density": masks.density},
        )
        name = "drawn by the seed and masked = measured"
        self.checks = (required(unchanged(name, measured, found.network(), self.plan.training.seed)),)
        return found

    def _score(self, module: nn.Module) -> float:
        """On validation data, higher is better."""
        found = evaluate(module, self.data.validation, self.objective, device=self.plan.training.device)
        sign = 1.0 if self.objective.higher_is_better else -1.0
        score = sign * found[self.objective.score]
        return -math.inf if math.isnan(score) else score

    def _measured(self, module: nn.Module) -> dict[str, dict[str, float]]:
        device = self.plan.training.device
        return {
            split: evaluate(module, examples, self.objective, device=device)
            for split, examples in (("validation", self.data.validation), ("test", self.data.test))
        }

    def _row(self, name: str, module: nn.Module, note: str = "") -> None:
        self._add(name, self._measured(module), note)

    def _add(self, name: str, found: Mapping[str, Mapping[str, Any]], note: str) -> None:
        self.rows.append(Row(name, found["test"], found["validation"], note=note))


def _present(gradients: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor] | None:
    return {name: gradient for name, gradient in gradients.items() if gradient is not None} or None


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No parameter that the module has now is trained inside the block."""
    asked = {parameter: parameter.requires_grad for parameter in module.parameters()}
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in asked.items():
            parameter.requires_grad_(wanted)

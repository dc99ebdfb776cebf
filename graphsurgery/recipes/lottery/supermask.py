"""Supermasks: what a network computes whose weights were never trained, only chosen.

Source: Zhou et al., "Deconstructing lottery tickets", arXiv:1905.01067, sections 4 and 5. Criterion and density are
chosen on validation data. Besides the sampled score of the paper there is that of the thresholded mask, which is what
is delivered: one fixed network, with the rescaling folded into its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import nn

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.models.spec_text import anchored
from graphsurgery.models.specs import names_file
from graphsurgery.models.supermasks import Supermask, prepare
from graphsurgery.network.outputs.randomness import seeded
from graphsurgery.passes.mask import mask
from graphsurgery.recipes.compression.shrink import with_gradients
from graphsurgery.recipes.contracts.edit_checks import unchanged
from graphsurgery.recipes.experiment import Experiment
from graphsurgery.recipes.lottery.plans import SupermaskPlan
from graphsurgery.recipes.outcome import Outcome, Result
from graphsurgery.recipes.train import fresh
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable
from graphsurgery.surgery.masks.plans import Selection
from graphsurgery.surgery.masks.selection import select
from graphsurgery.surgery.masks.training import parametrized
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.loop.evaluation import evaluate, recalibrate
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives.learned_masks import BernoulliMask, TopKMask
from graphsurgery.training.objectives.tasks import rank_of

DRAWS = 10
"""How many sampled scores are averaged."""


def check_spec(spec: str) -> None:
    """Refuse a file: its weights are drawn by no seed.

    Raises:
        SurgeryError: it is one.
    """
    if names_file(spec):
        raise SurgeryError(
            f"supermask: {spec} is a file, and a supermask's weights are drawn by a seed; give a model spec, or prune "
            "the weights of the file with lottery"
        )


@dataclass(frozen=True, kw_only=True)
class Masked(Outcome):
    """What was found out about a mask.

    Attributes:
        supermask: spec, seed and bits, which are the network.
    """

    supermask: Supermask


def supermask(
    spec: str, data: Data, plan: SupermaskPlan, *, run: Run | None = None, reporter: Reporter | None = None
) -> Result[Masked]:
    """Find a mask for the weights that `plan.training.seed` draws.

    Args:
        spec: which network.
        data: what the masked network shall do; only measured on `data.test`.
        plan: how.
        run: folder for metrics and states; an interrupted run goes on from it.
        reporter: told about progress.

    Returns:
        The network that seed and mask give, and with the mask a table: untrained, sampled and thresholded networks, or
        the best density of every criterion.

    Raises:
        SurgeryError: a density that empties a tensor, the data do not fit, or training fails.
        CheckFailedError: what the seed and the mask give is not the network that was measured.
    """
    books = Experiment(data, device=plan.training.device, run=run, reporter=reporter)
    work = _Masking(spec, plan, fresh(spec, data, plan.training.seed), books)
    found, measured, verdict = work.heuristic() if plan.method == "heuristic" else work.learned()
    network = found.network()
    books.require(unchanged("drawn by the seed and masked = measured", measured, network, plan.training.seed))
    config = {"spec": spec, "data": data.name, "plan": asdict(plan)}
    outcome = Masked(**books.findings(f"supermask of {spec} on {data.name}", verdict, config), supermask=found)
    return Result(network, outcome)


class _Masking:
    """One search in progress."""

    def __init__(self, spec: str, plan: SupermaskPlan, graph: ModelGraph, books: Experiment) -> None:
        self.spec, self.plan, self.graph, self.books, self.data = spec, plan, graph, books, books.data

    def learned(self) -> tuple[Supermask, ModelGraph, str]:
        """Train the scores, and measure the mask in every form that it has; with the masked network, and in words."""
        graph, plan = self.graph, self.plan
        drawn = self._drawn()
        weights = maskable(graph)
        prepare(graph, weights, constant=plan.constant)
        with seeded(plan.training.seed):
            parts = {name: self._part(name, weight) for name, weight in weights.items()}
        with _frozen(graph.module), parametrized(graph, parts) as module:
            self.books.fit(module, plan.training, "mask")
            if plan.method == "learned":
                self._sampled(module, list(parts.values()))
            recalibrate(module, self.data.train, seed=plan.training.seed)
            self._row("thresholded" if plan.method == "learned" else "top-k", module, "one network; what is delivered")
            masks = MaskSet({name: part.mask().cpu() for name, part in parts.items()})
        rescaled = {name: living.numel() / max(1, int(living.sum())) for name, living in masks.items()}
        found = self._found(masks, drawn, rescaled if plan.rescaled else {})
        return found, graph, f"{100 * masks.density:.1f} % of the weights live"

    def _drawn(self) -> dict[str, torch.Tensor]:
        """What the seed has drawn; the untrained network is measured."""
        self._row("untrained", self.graph.module)
        return {name: t.detach().clone() for name, t in self.graph.tensors().items()}

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
            found = [self.books.scored(module) for _ in range(DRAWS)]
        for part in parts:
            part.sampling = False
        self.books.write("sampled", found[0], "a draw for each batch")
        score = self.books.objective.score
        mean = {
            split: {key: sum(one[split][key] for one in found) / DRAWS for key in found[0][split]}
            for split in ("validation", "test")
        }
        spread = torch.tensor([one["test"][score] for one in found], dtype=torch.float64).std()
        self.books.write("averaged", mean, f"mean of {DRAWS} such scores, deviation on test data {float(spread):.2g}")

    def heuristic(self) -> tuple[Supermask, ModelGraph, str]:
        """Train a network, and choose criterion and density for the weights that it had before; as for `learned`."""
        graph, plan = self.graph, self.plan
        drawn = self._drawn()
        needs_gradients = {"snip", "grad"} & set(plan.criteria)
        gradients = {
            name: w.grad for name, w in (maskable(with_gradients(graph, self.data)) if needs_gradients else {}).items()
        }
        self.books.fit(graph.module, plan.training, "dense")
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
        found = self._found(masks, drawn, {})
        return found, mask(first, masks), f"best on validation data: {words} of each tensor"

    def _found(self, masks: MaskSet, drawn: Mapping[str, torch.Tensor], factors: Mapping[str, float]) -> Supermask:
        """The mask, with what no seed draws; what they give is the network that was measured."""
        parameters = {name for name, _ in self.graph.module.named_parameters(remove_duplicate=False)}
        # A heuristic mask is for the untrained network, whose statistics are those of the start.
        now = {} if self.plan.method == "heuristic" else self.graph.tensors()
        buffers = {n: t for n, t in now.items() if n not in parameters and not torch.equal(t.cpu(), drawn[n].cpu())}
        return Supermask(
            anchored(self.spec),
            self.plan.training.seed,
            self.data.input_shape,
            masks,
            self.plan.constant,
            factors,
            buffers,
            {"data": self.data.name, "method": self.plan.method, "density": masks.density},
        )

    def _score(self, module: nn.Module) -> float:
        """On validation data, higher is better."""
        objective = self.books.objective
        found = evaluate(module, self.data.validation, objective, device=self.books.device)
        return rank_of(found[objective.score], higher_is_better=objective.higher_is_better)

    def _row(self, name: str, module: nn.Module, note: str = "") -> None:
        self.books.write(name, self.books.scored(module), note)


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

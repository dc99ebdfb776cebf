"""How much each single weight matters, by its values before and after training, and which weights stay for it.

A criterion is a function of what its parameters name: `final` and `initial` are the weights after and before training,
`gradient` that of the loss. `WEIGHT_CRITERIA` is the table of them. `select` keeps an exact number of the best.

Source: Zhou, Lan, Liu, Yosinski, "Deconstructing lottery tickets", arXiv:1905.01067, section 2 and figure 3.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable
from graphsurgery.surgery.masks.plans import CRITERION_NAMES, Selection

Values = Mapping[str, Tensor]


def large_final(final: Tensor) -> Tensor:
    """The rule of the lottery ticket hypothesis."""
    return final.abs()


def small_final(final: Tensor) -> Tensor:
    return -final.abs()


def large_init(initial: Tensor) -> Tensor:
    return initial.abs()


def small_init(initial: Tensor) -> Tensor:
    return -initial.abs()


def large_init_large_final(initial: Tensor, final: Tensor) -> Tensor:
    """What lies above the same percentile on both sides; the percentile is what gives the count that is asked for."""
    return torch.minimum(_rank(initial.abs()), _rank(final.abs()))


def small_init_small_final(initial: Tensor, final: Tensor) -> Tensor:
    """What lies below the same percentile on both sides."""
    return -torch.maximum(_rank(initial.abs()), _rank(final.abs()))


def magnitude_increase(initial: Tensor, final: Tensor) -> Tensor:
    return final.abs() - initial.abs()


def movement(initial: Tensor, final: Tensor) -> Tensor:
    return (final - initial).abs()


def random(final: Tensor) -> Tensor:
    """All alike; the seed decides."""
    return torch.zeros_like(final)


def large_final_same_sign(initial: Tensor, final: Tensor) -> Tensor:
    """Large weights that have kept their sign; the others are all alike."""
    return (final * initial.sign()).clamp_min(0)


def large_final_diff_sign(initial: Tensor, final: Tensor) -> Tensor:
    """The control of the last: large weights whose sign has changed."""
    return (-final * initial.sign()).clamp_min(0)


def snip(initial: Tensor, gradient: Tensor) -> Tensor:
    """By how much the loss changes, to first order, without the weight (Lee et al., "SNIP", arXiv:1810.02340)."""
    return (initial * gradient).abs()


def grad(gradient: Tensor) -> Tensor:
    return gradient.abs()


WEIGHT_CRITERIA: Mapping[str, Callable[..., Tensor]] = {name: globals()[name] for name in CRITERION_NAMES}
_MISSING = {
    "initial": "the weights before training; give initial, or choose large_final",
    "gradient": "gradients, and gradients need data; give gradients, or choose large_final",
}


def select(
    graph: ModelGraph,
    masks: MaskSet,
    keep: float,
    plan: Selection,
    *,
    initial: Values | None = None,
    gradients: Values | None = None,
) -> MaskSet:
    """The best of the weights that live; the dead stay dead.

    Args:
        graph: the network after training; it is not modified.
        masks: which of its weights live.
        keep: the share of the living weights of each tensor that stays, where its factor is 1: the number that stays is
            exactly `round(living · (keep + (1 - factor) · (1 - keep)))`.
        plan: how to choose.
        initial: the weights before training, by name.
        gradients: of the loss, by name.

    Raises:
        SurgeryError: a share outside (0, 1], a tensor that would be empty, a criterion without what it needs, masks of
            another network, or scores that are no numbers.
    """
    masks.check_fits(graph)
    if not 0 < keep <= 1:
        raise SurgeryError(f"selection: keep is {keep:g}, expected a share above 0 and at most 1")
    kinds = kinds_of(graph)
    shares = {name: keep + (1 - getattr(plan, kinds[name])) * (1 - keep) for name in masks}
    counts = {name: round(int(living.sum()) * shares[name]) for name, living in masks.items()}
    for name, living in masks.items():
        if living.any() and not counts[name]:
            raise SurgeryError(
                f"selection: {name} has {int(living.sum())} living weights of {living.numel()}, and "
                f"{100 * shares[name]:.3g} % of them is none; keep more"
            )
    generator = torch.Generator().manual_seed(plan.seed)
    values = {"final": maskable(graph), "initial": initial, "gradient": gradients}
    scored = [name for name in masks if counts[name] < int(masks[name].sum())]
    if plan.scope == "global":
        return _globally(masks, counts, scored, values, plan, generator)
    kept = dict(masks)
    for name in scored:
        scores = _scores(plan.criterion, values, masks, [name])
        kept[name] = _placed(masks[name], _best(scores, counts[name], generator))
    return MaskSet(kept)


def _globally(
    masks: MaskSet,
    counts: Mapping[str, int],
    names: list[str],
    values: Mapping[str, Values | None],
    plan: Selection,
    generator: torch.Generator,
) -> MaskSet:
    """All tensors compete, above the floor of each."""
    scores = _scores(plan.criterion, values, masks, names)
    living = [int(masks[name].sum()) for name in names]
    total = sum(counts[name] for name in names)
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    start = 0
    for name, number in zip(names, living, strict=True):
        floor = min(number, max(1, math.ceil(plan.floor * masks[name].numel())))
        chosen[start : start + number] = _best(scores[start : start + number], floor, generator)
        start += number
    if int(chosen.sum()) > total:
        raise SurgeryError(
            f"selection: the floor of {100 * plan.floor:g} % of each tensor is {int(chosen.sum())} weights, and "
            f"{total} stay in all; keep more, or lower the floor"
        )
    rest = (~chosen).nonzero().flatten()
    chosen[rest[_best(scores[rest], total - int(chosen.sum()), generator)]] = True
    parts = dict(zip(names, chosen.split(living), strict=True))
    return MaskSet({name: _placed(mask, parts[name]) if name in parts else mask for name, mask in masks.items()})


def _scores(criterion: str, values: Mapping[str, Values | None], masks: MaskSet, names: list[str]) -> Tensor:
    """The scores of the living weights of some tensors, one after another, float64 on the CPU."""
    function = WEIGHT_CRITERIA[criterion]
    given: dict[str, Tensor] = {}
    for key in inspect.signature(function).parameters:
        known = values[key]
        if known is None:
            raise SurgeryError(f"criterion {criterion} needs {_MISSING[key]}")
        absent = [name for name in names if name not in known or known[name].shape != masks[name].shape]
        if absent:
            raise SurgeryError(f"criterion {criterion}: the {key} values have no {absent[0]} of the mask's shape")
        parts = [known[name].detach().cpu().double()[masks[name]] for name in names]
        given[key] = torch.cat([torch.zeros(0, dtype=torch.float64), *parts])
    scores = function(**given)
    if not torch.isfinite(scores).all():
        raise SurgeryError(f"criterion {criterion}: {', '.join(names[:3])} have scores that are no numbers")
    return scores


def _rank(values: Tensor) -> Tensor:
    """How many values are smaller."""
    return torch.searchsorted(values.sort().values, values).double()


def _best(scores: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Which scores are the `count` highest; of equal ones those that chance puts first."""
    order = torch.randperm(len(scores), generator=generator)
    order = order[scores[order].argsort(descending=True, stable=True)]
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


def _placed(living: Tensor, chosen: Tensor) -> Tensor:
    """The chosen of the living weights, as a mask."""
    kept = living.clone()
    kept[living] = chosen
    return kept


def kinds_of(graph: ModelGraph) -> dict[str, str]:
    """`output` for weights behind which no others stand, else `conv` (three axes or more) or `linear`."""
    weights = maskable(graph)
    last = _last_weights(graph, weights)
    return {
        name: "output" if name in last else "conv" if weight.dim() > 2 else "linear" for name, weight in weights.items()
    }


def _last_weights(graph: ModelGraph, weights: Values) -> set[str]:
    """The first weights on every way back from the outputs."""
    canonical = graph.types.canonical
    by_node: dict[fx.Node, set[str]] = {}
    for node in graph.module.graph.nodes:
        if node.op == "call_module":
            own = graph.module.get_submodule(str(node.target)).named_parameters()
            by_node[node] = {canonical[f"{node.target}.{name}"] for name, _ in own} & set(weights)
        elif node.op == "get_attr":
            by_node[node] = {canonical.get(str(node.target), "")} & set(weights)
    found: set[str] = set()
    waiting = [node for node in graph.module.graph.nodes if node.op == "output"]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        own_weights = set().union(*(by_node.get(n, set()) for n in (node, *_attributes(node))))
        if own_weights:
            found |= own_weights
            continue
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return found


def _attributes(node: fx.Node) -> list[fx.Node]:
    """The parameters that a node is given."""
    return [source for source in node.all_input_nodes if source.op == "get_attr"]

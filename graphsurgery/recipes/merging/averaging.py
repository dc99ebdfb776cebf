"""Merge without training: averages of weights, as they are or with the channels aligned.

Networks that were fine-tuned from one start lie in one basin, and the average of their weights is often better than
each (`soup`). Networks from unlike starts have learnt their channels in another order: put in one order, the average
is a network at least, and what is left of the barrier between them says how alike they are (`average`).

Sources: Wortsman et al., "Model soups", arXiv:2203.05482, recipe 1; Ainsworth et al., "Git Re-Basin",
arXiv:2209.04836; statistics anew after averaging: Jordan et al., "REPAIR", arXiv:2211.08403.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from graphsurgery.graph import ModelGraph
from graphsurgery.passes.align import align
from graphsurgery.recipes.contracts.edit_checks import unchanged
from graphsurgery.recipes.merging.plan import PARENT
from graphsurgery.recipes.merging.work import Merging, as_large_as_the_first
from graphsurgery.surgery.merging.averages import average
from graphsurgery.training.data.batches import Examples
from graphsurgery.training.loop.evaluation import evaluate

EXAMPLES = 1000
"""Training examples on which activations are compared."""
STEPS = (0.25, 0.5, 0.75)
"""Where the straight line between two networks is measured."""


def by_soup(work: Merging) -> ModelGraph:
    """The greedy soup: parents from the best on, each taken in if the average is no worse on validation data."""
    books = work.books
    rows = [row for row in books.rows if row.name.startswith(PARENT)]
    order = sorted(range(len(rows)), key=lambda n: books.rank(rows[n]), reverse=True)
    taken, soup, row = [order[0]], work.parents[order[0]], rows[order[0]]
    for number in order[1:]:
        tried = averaged(work, [work.parents[n] for n in (*taken, number)])
        found = books.measured("soup", tried, work.all_parents)
        if not books.better(row, found):
            taken, soup, row = [*taken, number], tried, found
    names = ", ".join(str(n + 1) for n in sorted(taken))
    alone = " alone: no other helps" if len(taken) == 1 else ""
    books.measure("soup", soup, work.all_parents, f"greedy, of parent{'s' * (len(taken) > 1)} {names}{alone}")
    return work.lineage(soup, taken=sorted(n + 1 for n in taken))


def by_average(work: Merging) -> ModelGraph:
    """The average with the channels of all parents in the order of the first one's."""
    aligned = [work.parents[0], *(aligned_to_first(work, n) for n in range(1, len(work.parents)))]
    mean = averaged(work, aligned)
    note = "channels aligned"
    if len(work.parents) == 2:
        before, after = barrier(work, work.parents), barrier(work, aligned)
        note += f"; barrier {before:.3g} before, {after:.3g} after"
    work.books.measure("aligned average", mean, work.all_parents, note)
    return work.lineage(mean)


def aligned_to_first(work: Merging, number: int) -> ModelGraph:
    """A parent whose channels are in the order of the first one's; that its outputs stay is checked."""
    parent = work.parents[number]
    aligned = align(parent, work.parents[0], list(_examples(work)))
    work.books.require(unchanged(f"parent {number + 1} aligned = parent {number + 1}", parent, aligned, work.plan.seed))
    return aligned


def averaged(work: Merging, graphs: Sequence[ModelGraph], weights: Sequence[float] | None = None) -> ModelGraph:
    """The average of weights, with statistics of its own."""
    mean = average(graphs, weights)
    work.recalibrate(mean)
    return mean


def barrier(work: Merging, pair: Sequence[ModelGraph]) -> float:
    """How far the validation loss rises above the straight line between the losses of two networks, at most."""
    losses = [_loss(work, graph) for graph in pair]
    found = [0.0]
    for step in STEPS:
        between = averaged(work, pair, (1 - step, step))
        found.append(_loss(work, between) - (1 - step) * losses[0] - step * losses[1])
    return max(found)


def _loss(work: Merging, graph: ModelGraph) -> float:
    books = work.books
    return evaluate(graph.module, books.data.validation, books.objective, device=books.device)["loss"]


def _examples(work: Merging) -> Iterator[Tensor]:
    examples = Examples(work.books.data.train, torch.device("cpu"))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(work.plan.seed))[:EXAMPLES]
    for batch in examples.batches(list(order.split(100))):
        yield batch[0]


def unlike_sizes(parents: Sequence[ModelGraph]) -> int | None:
    """The number of the first parent whose weights have no average with the first one's; None where all have."""
    alike = as_large_as_the_first(parents)
    return next((number + 1 for number in range(len(parents)) if number not in alike), None)

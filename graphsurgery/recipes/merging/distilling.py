"""Merge by distillation: the best parent learns on from all parents together, on mixtures of examples.

What the parents say together is better than what each says. A network that learns it of the examples alone has seen
most of it already, as it was trained on them until it knew their labels; of what lies between the examples only the
parents can tell it.

Sources: Hinton, Vinyals, Dean, arXiv:1503.02531; mixtures by Zhang et al., "mixup", arXiv:1710.09412, answered by the
teacher as by Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", arXiv:2106.05237.
"""

from __future__ import annotations

from dataclasses import replace

from graphsurgery.graph import ModelGraph
from graphsurgery.recipes.merging.plan import PARENT
from graphsurgery.recipes.merging.work import Merging


def by_distilling(work: Merging) -> ModelGraph:
    """The merged network."""
    best = work.best_parent()
    student = work.parents[best].copy()
    objective, examples = work.taught(work.parents)
    fine_tuning = replace(work.plan.fine_tuning, epochs=work.plan.epochs, seed=work.plan.seed)
    _, effort = work.books.train(student, fine_tuning, "fine-tune", objective=objective, dataset=examples)
    work.spent += effort
    return work.lineage(student, chosen=f"{PARENT}{best + 1}")

"""Merge by joint training: the concatenated network learns, is cut, and what it has learnt is distilled into the rest.

The zeros between the parents' blocks are parameters like others, so that half a training makes one wide network of the
two, better than either; its channels of least weight go, and the rest learns what it said, and the labels.

Source: distillation by Hinton, Vinyals, Dean, arXiv:1503.02531; the concatenation by Pašen & Boža, arXiv:2204.09973,
section 3.1.
"""

from __future__ import annotations

from dataclasses import replace

from graphsurgery.graph import ModelGraph
from graphsurgery.recipes.merging.work import Merging


def by_joint(work: Merging) -> ModelGraph:
    """The merged network."""
    plan, books = work.plan, work.books
    imitation = replace(plan.imitation, mixed=False)
    big = work.concatenated()
    # The mean of two regressions is no better a target than the labels.
    alone = books.data.classes is None
    objective, examples = (books.objective, books.data.train) if alone else work.taught(work.parents, imitation)
    _, effort = books.train(big, replace(plan.wide, seed=plan.seed), "joint", objective=objective, dataset=examples)
    work.spent += effort
    books.measure("joint", big, work.spent, "the concatenated network, trained on")
    small, why = work.cut(big, work.targets(big))
    books.measure("cut", small, work.spent, f"not exact: {why}" if why else "")
    work.recalibrated(small)
    objective, examples = work.taught([big], imitation)
    fine_tuning = replace(plan.fine_tuning, seed=plan.seed)
    _, effort = books.train(small, fine_tuning, "fine-tune", objective=objective, dataset=examples)
    work.spent += effort
    return work.lineage(small)

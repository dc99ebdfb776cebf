"""Merge by gates: close the gates of the concatenated network to the budget while it trains, cut, fine-tune.

Source: Pašen & Boža, "Merging of neural networks", arXiv:2204.09973, Neural Processing Letters 2024; with the repairs
that docs/architecture.md lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from graphsurgery.graph import ModelGraph
from graphsurgery.passes.gate import gate
from graphsurgery.recipes.contracts.edit_checks import unchanged
from graphsurgery.recipes.merging.work import Merging
from graphsurgery.recipes.outcome import Check, GateEpoch
from graphsurgery.surgery.gates import gates
from graphsurgery.training.loop.run import EpochRecord
from graphsurgery.training.objectives.gating import GateBudget


def by_gates(work: Merging) -> ModelGraph:
    """The merged network."""
    plan, books = work.plan, work.books
    big = work.concatenated()
    gated = _closed(work, big)
    targets, modules = work.targets(big), gates(gated)
    kept: dict[str, Any] = dict(targets)
    for name, module in modules.items():
        kept[name] = module.loc.detach().cpu().topk(targets[name]).indices.sort().values
    small, why = work.cut(gated, kept)
    books.measure("cut", small, work.spent, f"not exact: {why}" if why else "")
    work.recalibrated(small)
    objective, examples = work.taught(work.parents)
    fine_tuning = replace(plan.fine_tuning, seed=plan.seed)
    _, effort = books.train(small, fine_tuning, "fine-tune", objective=objective, dataset=examples)
    work.spent += effort
    return work.lineage(small)


def _closed(work: Merging, big: ModelGraph) -> ModelGraph:
    """The gated network when its gates have closed."""
    plan, books = work.plan, work.books
    gated = gate(big, seed=plan.seed)
    wide_open = gated.copy()
    for module in gates(wide_open).values():
        module.loc.data.fill_(50.0)
    books.require(unchanged("gates open = no gates", big, wide_open, plan.seed))
    targets, modules = work.targets(big), gates(gated)
    budgets = {name: targets[name] / modules[name].channels for name in modules}
    objective = GateBudget(books.objective, modules, budgets, lr=plan.gate_lr)
    group = {
        "params": [module.loc for module in modules.values()],
        "lr": plan.gate_lr,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "schedule": "constant",
        "name": "gates",
    }
    training = replace(plan.wide, keep_best=False, seed=plan.seed)
    history, effort = books.train(gated, training, "gates", objective=objective, groups=[group])
    work.gate_epochs = [_gate_epoch(record, budgets, modules) for record in history.records]
    work.spent += effort
    books.measure("gated", gated, work.spent, "gates closed, not yet cut")
    gap = history.records[-1].extra["largest gap"] if history.records else 1.0
    books.checks.append(Check("expected open share = budget, in every space", gap, 0.01))
    return gated


def _gate_epoch(record: EpochRecord, budgets: Mapping[str, float], modules: Mapping[str, Any]) -> GateEpoch:
    channels = {name: module.channels for name, module in modules.items()}
    budget = sum(budgets[n] * channels[n] for n in channels) / sum(channels.values())
    spaces = {key.removeprefix("open "): value for key, value in record.extra.items() if key.startswith("open ")}
    return GateEpoch(record.epoch, record.extra["strength"], record.extra["expected"], budget, spaces)

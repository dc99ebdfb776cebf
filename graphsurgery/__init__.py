"""Surgery on trained neural networks: trace, retype, rewrite, export, prove.

Networks     trace, open_model, save, load, cost; ModelGraph, Space
Files        import_onnx, rewrite_onnx, export_onnx, check_onnx
Classes      install, config_of
Passes       align, compress, concatenate, deepen, factorize, fold, gate, mask, prune_dead, relabel, slim, undo,
             unfactorize, widen
Recipes      train, merge, grow, mimic, shrink, recover_without_labels, lottery, supermask, train_slimmable, deliver,
             deliver_int8, examine
They take    TrainingPlan, load_data, remap_optimizer
Errors       SurgeryError and its kinds: TraceError, UnsupportedError, SpecError, CheckpointError, CheckFailedError

A pass takes typed graphs and returns a new one; a recipe trains and measures, too: it returns `Result(graph, outcome)`,
where the outcome has a row for each network, and of `lottery`, `supermask` and `train_slimmable` what else they made.
Every function says what it takes, what it raises and where it comes from: `help(gs.compress)`. Importing this package
is cheap; torch is imported when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphsurgery.errors import CheckFailedError, CheckpointError, SpecError, SurgeryError, TraceError, UnsupportedError

if TYPE_CHECKING:
    from graphsurgery.checkpoint.files import load, save
    from graphsurgery.graph import ModelGraph, Space
    from graphsurgery.models.libraries.installing import config_of, install
    from graphsurgery.models.loading import open_model
    from graphsurgery.onnx.editing.rewriting import rewrite_onnx
    from graphsurgery.onnx.exporting.checking import check_onnx
    from graphsurgery.onnx.exporting.exporter import export_onnx
    from graphsurgery.onnx.importing.importer import import_onnx
    from graphsurgery.passes.align import align
    from graphsurgery.passes.compress import compress
    from graphsurgery.passes.concatenate import concatenate
    from graphsurgery.passes.deepen import deepen
    from graphsurgery.passes.factorize import factorize, unfactorize
    from graphsurgery.passes.gate import fold, gate
    from graphsurgery.passes.mask import mask
    from graphsurgery.passes.prune_dead import prune_dead
    from graphsurgery.passes.relabel import relabel
    from graphsurgery.passes.slim import slim
    from graphsurgery.passes.widen import undo, widen
    from graphsurgery.recipes.compression.label_free import recover_without_labels
    from graphsurgery.recipes.compression.shrink import shrink
    from graphsurgery.recipes.contracts.doctor import examine
    from graphsurgery.recipes.delivery.deliver import deliver
    from graphsurgery.recipes.delivery.quantize import deliver_int8
    from graphsurgery.recipes.grow import grow
    from graphsurgery.recipes.lottery.lottery import lottery
    from graphsurgery.recipes.lottery.supermask import supermask
    from graphsurgery.recipes.merging.merge import merge
    from graphsurgery.recipes.mimicking.mimic import mimic
    from graphsurgery.recipes.slimming.slimmable import train_slimmable
    from graphsurgery.recipes.train import train
    from graphsurgery.surgery.channels.cost import cost
    from graphsurgery.tracing.trace import trace
    from graphsurgery.training.data.loading import load_data
    from graphsurgery.training.loop.optimizer_state import remap_optimizer
    from graphsurgery.training.loop.plan import TrainingPlan

__version__ = "0.1.0"

__all__ = [
    "CheckFailedError",
    "CheckpointError",
    "ModelGraph",
    "Space",
    "SpecError",
    "SurgeryError",
    "TraceError",
    "TrainingPlan",
    "UnsupportedError",
    "align",
    "check_onnx",
    "compress",
    "concatenate",
    "config_of",
    "cost",
    "deepen",
    "deliver",
    "deliver_int8",
    "examine",
    "export_onnx",
    "factorize",
    "fold",
    "gate",
    "grow",
    "import_onnx",
    "install",
    "load",
    "load_data",
    "lottery",
    "mask",
    "merge",
    "mimic",
    "open_model",
    "prune_dead",
    "recover_without_labels",
    "relabel",
    "remap_optimizer",
    "rewrite_onnx",
    "save",
    "shrink",
    "slim",
    "supermask",
    "trace",
    "train",
    "train_slimmable",
    "undo",
    "unfactorize",
    "widen",
]

_HOMES = {
    "ModelGraph": "graph",
    "Space": "graph",
    "TrainingPlan": "training.loop.plan",
    "align": "passes.align",
    "check_onnx": "onnx.exporting.checking",
    "compress": "passes.compress",
    "concatenate": "passes.concatenate",
    "config_of": "models.libraries.installing",
    "cost": "surgery.channels.cost",
    "deepen": "passes.deepen",
    "deliver": "recipes.delivery.deliver",
    "deliver_int8": "recipes.delivery.quantize",
    "examine": "recipes.contracts.doctor",
    "export_onnx": "onnx.exporting.exporter",
    "factorize": "passes.factorize",
    "fold": "passes.gate",
    "gate": "passes.gate",
    "grow": "recipes.grow",
    "import_onnx": "onnx.importing.importer",
    "install": "models.libraries.installing",
    "load": "checkpoint.files",
    "load_data": "training.data.loading",
    "lottery": "recipes.lottery.lottery",
    "mask": "passes.mask",
    "merge": "recipes.merging.merge",
    "mimic": "recipes.mimicking.mimic",
    "open_model": "models.loading",
    "prune_dead": "passes.prune_dead",
    "recover_without_labels": "recipes.compression.label_free",
    "relabel": "passes.relabel",
    "remap_optimizer": "training.loop.optimizer_state",
    "rewrite_onnx": "onnx.editing.rewriting",
    "save": "checkpoint.files",
    "shrink": "recipes.compression.shrink",
    "slim": "passes.slim",
    "supermask": "recipes.lottery.supermask",
    "trace": "tracing.trace",
    "train": "recipes.train",
    "train_slimmable": "recipes.slimming.slimmable",
    "undo": "passes.widen",
    "unfactorize": "passes.factorize",
    "widen": "passes.widen",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])

"""The demo: two networks trained from different seeds, merged, exported, and checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from graphsurgery.checkpoint.files import save
from graphsurgery.graph import ModelGraph
from graphsurgery.recipes.delivery.deliver import deliver
from graphsurgery.recipes.merging.merge import merge
from graphsurgery.recipes.merging.plan import MergeWishes
from graphsurgery.recipes.outcome import Outcome
from graphsurgery.recipes.train import train
from graphsurgery.training.data.loading import load_data
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import Reporter

SPEC = "paper/cnn?width=3"
DATA = "digits?train=200&validation=100"
"""Few examples with labels: there merging is worth most (docs/benchmarks.md)."""
FILES = ("a.pt", "b.pt", "merged.pt", "merged.onnx", "report.html")
CONTROLS = ("distilled", "mixed")
"""The strongest of the controls on this task (docs/benchmarks.md)."""
PLAN = TrainingPlan(epochs=60, batch_size=64, lr=0.1, weight_decay=5e-4, schedule="cosine", device="cpu")


def demo(
    folder: Path | str, *, data: str = DATA, spec: str = SPEC, seed: int = 0, reporter: Reporter | None = None
) -> Outcome:
    """Train two parents, merge them, export and check the result; all in one folder.

    Args:
        folder: gets `FILES`; made if it is missing.
        data: data spec; the default comes with scikit-learn.
        spec: model spec of the parents.
        seed: the parents' seeds are `2 seed` and `2 seed + 1`.
        reporter: told about progress.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    examples = load_data(data)
    parents: list[ModelGraph] = []
    for index, name in enumerate("ab"):
        plan = replace(PLAN, seed=2 * seed + index)
        parent = train(spec, examples, plan, stage=f"parent-{name}", reporter=reporter).graph
        save(parent, folder / f"{name}.pt")
        parents.append(parent)

    def keep(graph: ModelGraph) -> None:
        save(graph, folder / "merged.pt")

    merging = MergeWishes(controls=",".join(CONTROLS), **PLAN.execution()).plan(parents, seed)
    merged = merge(parents, examples, merging, reporter=reporter, made=keep)
    delivery = deliver(
        merged.graph,
        folder / "merged.onnx",
        name="merged",
        against={"parent 1": parents[0]},
    )
    files = {f"parent {number}": str(folder / name) for number, name in enumerate(("a.pt", "b.pt"), 1)}
    files |= {"network": str(folder / "merged.pt")}
    files |= {"onnx": str(folder / "merged.onnx")}
    return replace(delivery.recorded(merged.outcome), files=files)

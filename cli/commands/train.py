"""`graphsurgery train`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Dataset, Model
from graphsurgery.cli.options import Output, open_data
from graphsurgery.cli.session import TRAINING, Training, TrainingSession
from graphsurgery.training.loop.plan import TrainingPlan

_PLAN = TrainingPlan()


def train(
    spec: Model,
    /,
    *,
    data: Dataset,
    output: Output,
    answer: str | None = None,
    plan: Annotated[TrainingPlan, Parameter(name="*", group="Training")] = _PLAN,
    asked: Training = TRAINING,
) -> None:
    """Train a network from a model spec and save it.

    Parameters
    ----------
    spec
        Which network: paper/NAME, torchvision/NAME, timm/NAME or file.py:function, with ?option=value; see
        graphsurgery models.
    data
        What it learns: digits, sine, fashion-mnist[:DIR], cifar10[:DIR], cifar100[:DIR], imagefolder:DIR,
        arrays:DIR (.npz files of inputs and labels) or file.py:function; see graphsurgery data. Of images, ?size=,
        resize=, crop=, mean=, std= and augment= say what the network sees, by default as it says itself.
    answer
        Which of several outputs counts, such as logits, 0 or out.aux; the others go, with what only they need.
    """
    session = TrainingSession.of(asked, network=output, reads=[spec, data])
    from graphsurgery.checkpoint.files import save
    from graphsurgery.cli.output import columns, count
    from graphsurgery.models.spec_text import anchored
    from graphsurgery.recipes import train as recipe
    from graphsurgery.surgery.channels.cost import cost
    from graphsurgery.training.devices import end_processes

    examples = open_data(data, spec, seed=plan.seed)
    size = cost(recipe.fresh(spec, examples, plan.seed, answer))
    screen, named = session.screen, {"spec": anchored(spec), "data": anchored(data)}
    document = session.document = {**named, "plan": asdict(plan), "parameters": size.parameters, "macs": size.macs}
    screen.line("network", f"{spec}: {count(size.parameters)} parameters, {count(size.macs)} MACs per example")
    if asked.dry_run:
        session.would(f"train {plan.epochs} epochs on {data} and write {output}")
        return
    settings = {**named, "plan": plan.what_fixes_the_result(), **({} if answer is None else {"answer": answer})}
    books = session.begin("train", settings)
    graph, outcome = recipe.train(spec, examples, plan, answer=answer, **books)
    found = {part: getattr(outcome.row("trained"), part) for part in ("train", "validation", "test")}
    table = columns(data, *found["test"], right=list(found["test"]))
    for name, metrics in found.items():
        table.add_row(name, *(f"{value:.4f}" for value in metrics.values()))
    if session.is_first:
        save(graph, output, **document, metrics=found, best_epoch=outcome.config["best_epoch"])
    end_processes()
    screen.show(table)
    screen.line("wrote", str(output))
    screen.finish({**document, "metrics": found, "files": session.files}, "inspect", output)

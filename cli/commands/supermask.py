"""`graphsurgery supermask`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Dataset, Model
from graphsurgery.cli.options import Output, Seed, open_data
from graphsurgery.cli.session import TRAINING, Training, TrainingSession
from graphsurgery.recipes.lottery.plans import CRITERION_NAMES, DENSITIES, SupermaskPlan, training_for
from graphsurgery.training.loop.plan import Execution, TrainingPlan

_MANY = Parameter(name="--criterion", negative="", show_default=False)
_PLAIN = TrainingPlan()


@Parameter(name="*", group="Masking")
@dataclass(frozen=True)
class Masking(SupermaskPlan):
    """The plan, as it is spelled on a command line; the training follows from the method."""

    method: Literal["learned", "top-k", "heuristic"] = "learned"
    training: Annotated[TrainingPlan, Parameter(parse=False)] = _PLAIN
    constant: Annotated[bool, Parameter(negative="--init")] = True
    """Weights are the signs of the drawn ones times one number for each tensor, or the drawn ones."""
    rescaled: Annotated[bool, Parameter(name="--rescale", negative="--no-rescale")] = True
    through_factor: Annotated[bool, Parameter(negative="", show_default=False)] = False
    criteria: Annotated[tuple[str, ...], _MANY] = CRITERION_NAMES
    """For heuristic: try this criterion only; may be given again."""
    densities: Annotated[tuple[float, ...], Parameter(parse=False)] = DENSITIES


@Parameter(name="*", group="Training")
@dataclass(frozen=True)
class MaskLearning(Execution):
    """How scores are trained, or the network that the criteria look at."""

    epochs: int = 10
    """How long."""
    lr: float | None = None
    """Learning rate: by default 100 for learned and 0.1 for top-k (SGD), 1.2e-3 for heuristic (Adam)."""
    batch_size: int | None = None
    """By default 250 for learned, 128 for top-k and 60 for heuristic."""


_MASKING, _LEARNING = Masking(), MaskLearning()


def supermask(
    spec: Model,
    /,
    *,
    data: Dataset,
    output: Output,
    plan: Masking = _MASKING,
    learning: MaskLearning = _LEARNING,
    seed: Seed = 0,
    asked: Training = TRAINING,
) -> None:
    """Choose among weights that are never trained; the file holds the architecture, the seed and a bit for each.

    Parameters
    ----------
    spec
        Which network: paper/NAME, torchvision/NAME, timm/NAME or file.py:function, with ?option=value; see
        graphsurgery models.
    data
        What the masked network shall do.
    """
    session = TrainingSession.of(asked, mask=output, reads=[spec, data])
    from graphsurgery.models.supermasks import save_supermask
    from graphsurgery.recipes.lottery.supermask import check_spec
    from graphsurgery.recipes.lottery.supermask import supermask as recipe
    from graphsurgery.recipes.train import fresh
    from graphsurgery.reports.tables import OutcomeTable
    from graphsurgery.surgery.masks.mask_set import MaskSet

    check_spec(spec)
    screen = session.screen
    plan = replace(plan, training=training_for(plan.method, **asdict(learning), seed=seed))
    examples = open_data(data, spec, seed=seed)
    session.document |= {"spec": spec, "data": data, "plan": asdict(plan)}
    if asked.dry_run:
        masks = MaskSet.ones(fresh(spec, examples, seed))
        screen.line("weights", f"{masks.total:,} in {len(masks)} tensors; a bit for each is {masks.total / 8e3:.3g} kB")
        session.would(f"train {plan.training.epochs} epochs and write {output}")
        return
    books = session.begin("supermask", {**session.document, "plan": plan.what_fixes_the_result()})
    outcome = recipe(spec, examples, plan, **books).outcome
    found = outcome.supermask
    size = save_supermask(found, output) if session.is_first else 0
    screen.show(OutcomeTable(outcome))
    screen.checks(outcome.checks)
    screen.line("mask", outcome.verdict)
    screen.line("wrote", f"{output}: {size / 1e3:.1f} kB; the weights would take {4 * found.masks.total / 1e3:,.0f} kB")
    results = {"outcome": outcome.as_dict(), "bytes": size, "density": found.masks.density, "files": session.files}
    screen.finish({**session.document, **results}, "export", output, "-o", output.with_suffix(".onnx"))

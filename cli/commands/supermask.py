"""`graphsurgery supermask`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from graphsurgery.cli.options import SHOWN, WRITING, DryRun, Output, Seed, Shown, Writing, open_data, without_dry_run
from graphsurgery.cli.running import RUNNING, Running

if TYPE_CHECKING:
    from graphsurgery.recipes.lottery.supermask import SupermaskPlan

_MANY = Parameter(negative="", show_default=False)


@Parameter(name="*", group="Masking")
@dataclass(frozen=True)
class Masking:
    """How the mask is found."""

    method: Literal["learned", "top-k", "heuristic"] = "learned"
    """Scores learned by draws with straight-through gradients; the largest scores, for an exact density; or criteria
    that look at a network trained for it."""
    constant: Annotated[bool, Parameter(negative="--init")] = True
    """Weights are the signs of the drawn ones times one number for each tensor, or the drawn ones."""
    rescale: Annotated[bool, Parameter(negative="--no-rescale")] = True
    """Multiply living weights by how many there are of each that lives."""
    through_factor: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Let gradients pass through that factor too."""
    density: float = 0.5
    """Share of the weights that lives, for top-k."""
    criterion: Annotated[tuple[str, ...], _MANY] = ()
    """For heuristic: try this criterion only; may be given again."""


@Parameter(name="*", group="Training")
@dataclass(frozen=True)
class Learning:
    """How scores are trained, or the network that the criteria look at."""

    epochs: int = 10
    """How long."""
    lr: float | None = None
    """Learning rate: by default 100 for learned and 0.1 for top-k (SGD), 1.2e-3 for heuristic (Adam)."""
    batch_size: int | None = None
    """By default 250 for learned, 128 for top-k and 60 for heuristic."""
    device: str = "auto"
    """auto, cpu, cuda or any torch device."""

    def plan(self, masking: Masking, seed: int) -> SupermaskPlan:
        """The plan of this mask."""
        from graphsurgery.recipes.lottery.supermask import SupermaskPlan
        from graphsurgery.surgery.masks.selection import WEIGHT_CRITERIA
        from graphsurgery.training.loop.plan import TrainingPlan

        lr, batch, optimizer, schedule = {
            "learned": (100.0, 250, "sgd", "constant"),
            "top-k": (0.1, 128, "sgd", "cosine"),
            "heuristic": (1.2e-3, 60, "adam", "constant"),
        }[masking.method]
        training = TrainingPlan(
            epochs=self.epochs,
            batch_size=self.batch_size or batch,
            optimizer=optimizer,
            lr=lr if self.lr is None else self.lr,
            schedule=schedule,
            seed=seed,
            device=self.device,
        )
        return SupermaskPlan(
            masking.method,
            training,
            constant=masking.constant,
            rescaled=masking.rescale,
            through_factor=masking.through_factor,
            density=masking.density,
            criteria=masking.criterion or tuple(WEIGHT_CRITERIA),
        )


_MASKING, _LEARNING = Masking(), Learning()


def supermask(
    spec: str,
    /,
    *,
    data: str,
    output: Output,
    masking: Masking = _MASKING,
    learning: Learning = _LEARNING,
    run: Running = RUNNING,
    seed: Seed = 0,
    dry_run: DryRun = False,
    writing: Writing = WRITING,
    shown: Shown = SHOWN,
) -> None:
    """Choose among weights that are never trained; the file holds the architecture, the seed and a bit for each.

    Parameters
    ----------
    spec
        Which network: paper/NAME, torchvision/NAME, timm/NAME or file.py:function, with ?option=value.
    data
        What the masked network shall do.
    """
    writing.allow(mask=output, reads=[spec, data])
    from dataclasses import asdict

    from graphsurgery.cli.output import Screen
    from graphsurgery.errors import SurgeryError
    from graphsurgery.models.specs import names_file
    from graphsurgery.models.supermasks import save_supermask
    from graphsurgery.recipes.lottery.supermask import supermask as recipe
    from graphsurgery.recipes.train import fresh
    from graphsurgery.reports.tables import OutcomeTable
    from graphsurgery.surgery.masks.mask_set import MaskSet

    if names_file(spec):
        raise SurgeryError(
            f"supermask: {spec} is a file, and a supermask's weights are drawn by a seed; give a model spec, or prune "
            "the weights of the file with lottery"
        )
    screen = Screen(shown)
    plan = learning.plan(masking, seed)
    examples = open_data(data, spec, seed=seed)
    document = {"spec": spec, "data": data, "plan": asdict(plan)}
    if dry_run:
        masks = MaskSet.ones(fresh(spec, examples, seed))
        screen.line("weights", f"{masks.total:,} in {len(masks)} tensors; a bit for each is {masks.total / 8e3:.3g} kB")
        screen.line("dry run", f"would train {plan.training.epochs} epochs and write {output}")
        screen.finish(document, *without_dry_run())
        return
    settings = {**document, "command": "supermask"}
    settings["plan"] = {**asdict(plan), "training": plan.training.what_fixes_the_result()}
    folder = run.open(screen, settings)
    outcome = recipe(spec, examples, plan, run=folder, reporter=screen.reporter()).outcome
    found = outcome.supermask
    size = save_supermask(found, output)
    screen.show(OutcomeTable(outcome))
    screen.checks(outcome.checks)
    screen.line("mask", outcome.verdict)
    screen.line("wrote", f"{output}: {size / 1e3:.1f} kB; the weights would take {4 * found.masks.total / 1e3:,.0f} kB")
    results = {"outcome": outcome.as_dict(), "bytes": size, "density": found.masks.density, "files": {"mask": output}}
    screen.finish({**document, **results}, "export", output, "-o", output.with_suffix(".onnx"))

"""`graphsurgery lottery`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from graphsurgery.cli.options import OPENING, SHOWN, WRITING, DryRun, Opening, Shown, Writing, without_dry_run
from graphsurgery.training.loop.plan import TrainingPlan

if TYPE_CHECKING:
    from graphsurgery.recipes.lottery.tickets import LotteryPlan

_MANY = Parameter(negative="", show_default=False)


@Parameter(name="*", group="Pruning")
@dataclass(frozen=True)
class Drawing:
    """Which weights go, and what the others start from."""

    rounds: int = 12
    """How often weights are pruned; every round keeps the same share of those that live."""
    density: float = 0.07
    """Share of the weights that lives after the last round."""
    one_shot: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Cut every density from the dense network at once."""
    criterion: str = "large_final"
    """Which weights stay: large_final, small_final, large_init, small_init, large_init_large_final,
    small_init_small_final, magnitude_increase, movement, random, large_final_same_sign, large_final_diff_sign, snip or
    grad."""
    scope: Literal["layer", "global"] = "layer"
    """Each tensor loses its share, or all weights compete."""
    floor: float = 0.01
    """With --scope global: the share of each tensor that stays."""
    linear_rate: float = 1.0
    """Factor on the rate at which linear layers are pruned; 0 leaves them whole."""
    conv_rate: float = 1.0
    """The same for convolutions."""
    output_rate: float = 0.5
    """The same for the last layer, of whatever kind."""
    kept: Literal["lr-rewind", "rewind", "reinit", "reshuffle", "constant"] = "lr-rewind"
    """What living weights start from: where they ended, where they began, new draws, each other's, a constant."""
    keep_sign: Annotated[bool, Parameter(negative="--free-sign")] = True
    """Whether they start with the sign that they had."""
    dead: str = "zero"
    """What dead weights are: zero, freeze, variant-1 or variant-2 (also with -random and -reversed)."""
    rewind_to: int = 0
    """The training step whose weights --kept rewind goes back to."""
    control: Annotated[tuple[str, ...], _MANY] = ()
    """Also train under each mask: reinit, shuffle, constant, "constant, sign kept", reshuffle, rewind, …; may be given
    again."""
    control_rounds: Annotated[tuple[int, ...], _MANY] = ()
    """Train controls in these rounds only."""
    seeds: int = 1
    """How many networks, from as many seeds; the table has means and deviations."""
    stop_every: int = 0
    """Training steps between readings of the validation loss, for the early-stopping step; it is read once an epoch in
    any case."""

    def plan(self, training: TrainingPlan) -> LotteryPlan:
        """The plan of these tickets."""
        from graphsurgery.recipes.lottery.tickets import LotteryPlan
        from graphsurgery.surgery.masks.restarts import Restart
        from graphsurgery.surgery.masks.selection import Selection

        return LotteryPlan(
            training=training,
            rounds=self.rounds,
            density=self.density,
            one_shot=self.one_shot,
            selection=Selection(
                self.criterion,
                self.scope,
                self.floor,
                linear=self.linear_rate,
                conv=self.conv_rate,
                output=self.output_rate,
                seed=training.seed,
            ),
            restart=Restart(self.kept, self.keep_sign, self.dead),
            rewind_to=self.rewind_to,
            controls=self.control,
            control_rounds=self.control_rounds,
            seeds=self.seeds,
            stop_every=self.stop_every,
        )


@dataclass(frozen=True)
class Training(TrainingPlan):
    """As the papers train; what the command line leaves out comes from here, and not from `TrainingPlan`."""

    epochs: int = 5
    batch_size: int = 60
    optimizer: str = "adam"
    lr: float = 1.2e-3
    schedule: str = "constant"


_DRAWING, _TRAINING = Drawing(), Training()


def lottery(
    model: str,
    /,
    *,
    data: str,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="The folder to write; the command resumes in it.")],
    pruning: Drawing = _DRAWING,
    plan: Annotated[Training, Parameter(name="*", group="Training")] = _TRAINING,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    dry_run: DryRun = False,
    shown: Shown = SHOWN,
) -> None:
    """Draw lottery tickets: train, prune and start again, round after round, next to controls.

    Parameters
    ----------
    model
        A model spec, whose weights a seed draws: paper/NAME, torchvision/NAME, timm/NAME or file.py:function, with
        ?option=value. Or a checkpoint, whose weights tickets go back to.
    data
        What it learns; tickets are chosen on its validation part.
    """
    import hashlib
    import json
    from dataclasses import asdict, replace

    from graphsurgery.checkpoint.atomic import atomic_write, clean_parts
    from graphsurgery.cli.output import Screen
    from graphsurgery.errors import SurgeryError
    from graphsurgery.models.specs import names_file
    from graphsurgery.recipes.lottery.lottery import lottery as recipe
    from graphsurgery.recipes.train import fresh
    from graphsurgery.reports.lottery import draw_lottery, lottery_markdown, lottery_table
    from graphsurgery.surgery.masks.mask_set import MaskSet
    from graphsurgery.surgery.masks.selection import select
    from graphsurgery.training.loop.run import Run

    if output.exists() and not output.is_dir():
        raise SurgeryError(f"{output}: is a file, expected the name of a folder")
    table, picture, numbers = (output / f"lottery.{ending}" for ending in ("md", "svg", "json"))
    if not (output / "states" / "config.json").exists():  # else it is the folder of this command, which resumes
        tickets_there = sorted(output.glob("seed-*/round-*.pt"))
        writing.check_new(table, picture, numbers, *tickets_there)
    if opening.answer is not None and not names_file(model):
        raise SurgeryError("--answer: tickets of a spec are drawn again and again; give it an output of its own")
    screen = Screen(shown)
    tickets = pruning.plan(plan)
    examples = opening.data(data, model, seed=plan.seed)
    start = opening.graph(model, examples.input_shape) if names_file(model) else None
    document = {"model": model, "data": data, "plan": asdict(tickets)}
    if dry_run:
        graph = fresh(model, examples, plan.seed) if start is None else start
        masks = MaskSet.ones(graph)
        trainings = tickets.seeds * (1 + tickets.rounds)
        trainings += tickets.seeds * len(tickets.controls) * len(tickets.control_rounds or range(tickets.rounds))
        last = select(graph, masks, tickets.density, replace(tickets.selection, criterion="random"))
        screen.line("weights", f"{masks.total:,} in {len(masks)} tensors; the sparsest ticket has {last.kept:,}")
        screen.line("dry run", f"would train {trainings} times for {plan.epochs} epochs and write {output}")
        screen.finish(document, *without_dry_run())
        return
    settings = {**document, "command": "lottery", "plan": {**asdict(tickets), "training": plan.what_fixes_the_result()}}
    if start is not None:
        settings["start"] = hashlib.sha256(Path(model).read_bytes()).hexdigest()
    run = Run(output / "states", config=settings)
    clean_parts(output)
    found = recipe(model, examples, tickets, start=start, run=run, folder=output, reporter=screen.reporter()).outcome
    for file, text in ((table, lottery_markdown(found)), (numbers, json.dumps(found.as_dict(), indent=2) + "\n")):
        with atomic_write(file) as partial:
            partial.write_text(text)
    draw_lottery(found, picture)
    screen.show(lottery_table(found))
    screen.checks(found.checks)
    ticket = output / "seed-0" / f"round-{found.delivered:02d}.pt"
    screen.line("chosen", found.verdict)
    screen.line("wrote", f"{table}, {picture}, {numbers}")
    screen.line("wrote", f"{output}/seed-N/round-NN.pt (tickets: masked, with their bits in the metadata)")
    document |= {"lottery": found.as_dict(), "files": {"table": table, "picture": picture, "ticket": ticket}}
    screen.finish(document, "compress", ticket, "--dead", "-o", output / "small.pt")

"""`graphsurgery lottery`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Dataset, Model
from graphsurgery.cli.options import OPENING, SHOWN, WRITING, DryRun, Opening, Shown, Writing
from graphsurgery.cli.running import contents_of
from graphsurgery.cli.session import Session
from graphsurgery.recipes.lottery.plans import LotteryPlan
from graphsurgery.surgery.masks.plans import Restart, Selection
from graphsurgery.training.loop.plan import TrainingPlan

if TYPE_CHECKING:
    from graphsurgery.graph import ModelGraph
    from graphsurgery.recipes.lottery.tickets import Lottery
    from graphsurgery.training.data.dataset import Data

_FLAG = Parameter(negative="", show_default=False)


@Parameter(name="*", group="Training")
@dataclass(frozen=True)
class TicketLearning(TrainingPlan):
    """As the papers train; what the command line leaves out comes from here, and not from `TrainingPlan`."""

    epochs: int = 5
    batch_size: int = 60
    optimizer: str = "adam"
    lr: float = 1.2e-3
    schedule: str = "constant"


@Parameter(name="*")
@dataclass(frozen=True)
class Choosing(Selection):
    """Which weights stay, as it is spelled on a command line."""

    scope: Literal["layer", "global"] = "layer"
    linear: Annotated[float, Parameter(name="--linear-rate")] = 1.0
    conv: Annotated[float, Parameter(name="--conv-rate")] = 1.0
    output: Annotated[float, Parameter(name="--output-rate")] = 0.5
    seed: Annotated[int, Parameter(parse=False)] = 0


@Parameter(name="*")
@dataclass(frozen=True)
class Starting(Restart):
    """What the others start from, as it is spelled on a command line."""

    kept: Literal["lr-rewind", "rewind", "reinit", "reshuffle", "constant"] = "lr-rewind"
    keep_sign: Annotated[bool, Parameter(negative="--free-sign")] = True
    """Whether they start with the sign that they had."""
    shuffled: Annotated[bool, Parameter(parse=False)] = False
    rescaled: Annotated[bool, Parameter(parse=False)] = False


_LEARNING, _CHOOSING, _STARTING = TicketLearning(), Choosing(), Starting()


@Parameter(name="*", group="Pruning")
@dataclass(frozen=True)
class TicketDrawing(LotteryPlan):
    """The plan, as it is spelled on a command line."""

    training: TicketLearning = _LEARNING
    one_shot: Annotated[bool, _FLAG] = False
    selection: Choosing = _CHOOSING
    restart: Starting = _STARTING
    controls: Annotated[tuple[str, ...], Parameter(name="--control", negative="", show_default=False)] = ()
    """Also train under each mask: reinit, shuffle, constant, "constant, sign kept", reshuffle, rewind, …; may be given
    again."""
    control_rounds: Annotated[tuple[int, ...], _FLAG] = ()


_DRAWING = TicketDrawing()


def lottery(
    model: Model,
    /,
    *,
    data: Dataset,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="The folder to write; the command resumes in it.")],
    plan: TicketDrawing = _DRAWING,
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
        ?option=value (see graphsurgery models). Or a file whose weights tickets go back to: a checkpoint, an .onnx
        file, or a state_dict (.pt or .safetensors) with --arch.
    data
        What it learns; tickets are chosen on its validation part.
    """
    files = {name: output / f"lottery.{ending}" for name, ending in _FILES.items()}
    _check_folder(output, writing, files)
    from graphsurgery.checkpoint.atomic import clean_parts
    from graphsurgery.recipes.lottery.lottery import lottery as recipe
    from graphsurgery.recipes.train import fresh
    from graphsurgery.reports.lottery import write_lottery
    from graphsurgery.training.loop.run import Run

    # One seed for everything that is drawn.
    plan = replace(plan, selection=replace(plan.selection, seed=plan.training.seed))
    examples = opening.data(data, model, seed=plan.training.seed)
    start = _start(model, opening, examples)
    session = Session(shown, {"model": model, "data": data, "plan": asdict(plan)})
    if dry_run:
        _show_weights(session, start or fresh(model, examples, plan.training.seed), plan)
        session.would(f"train {plan.trainings} times for {plan.training.epochs} epochs and write {output}")
        return
    settings = {**session.document, "command": "lottery", "plan": plan.what_fixes_the_result()}
    settings |= contents_of([model, data])
    run = Run(output / "states", config=settings)
    clean_parts(output)
    reporter = session.screen.reporter()
    found = recipe(model, examples, plan, start=start, run=run, folder=output, reporter=reporter).outcome
    write_lottery(found, **files)
    _show(session, found, output, files)


def _show(session: Session, found: Lottery, output: Path, files: dict[str, Path]) -> None:
    """The table, the chosen round, and what was written."""
    from graphsurgery.reports.lottery import lottery_table

    screen = session.screen
    screen.show(lottery_table(found))
    screen.checks(found.checks)
    ticket = output / "seed-0" / f"round-{found.delivered:02d}.pt"
    screen.line("chosen", found.verdict)
    screen.line("wrote", ", ".join(map(str, files.values())))
    screen.line("wrote", f"{output}/seed-N/round-NN.pt (tickets: masked, with their bits in the metadata)")
    named = {"table": files["table"], "picture": files["picture"], "ticket": ticket}
    document = {**session.document, "lottery": found.as_dict(), "files": named}
    screen.finish(document, "compress", ticket, "--dead", "-o", output / "small.pt")


_FILES = {"table": "md", "picture": "svg", "numbers": "json"}


def _check_folder(output: Path, writing: Writing, files: dict[str, Path]) -> None:
    """Refuse a folder that could not be written, or that holds what would be written over."""
    from graphsurgery.errors import SurgeryError

    if output.exists() and not output.is_dir():
        raise SurgeryError(f"{output}: is a file, expected the name of a folder")
    if not (output / "states" / "config.json").exists():  # else it is the folder of this command, which resumes
        writing.check_new(*files.values(), *sorted(output.glob("seed-*/round-*.pt")))


def _start(model: str, opening: Opening, data: Data) -> ModelGraph | None:
    """The network that tickets go back to, where a file holds one."""
    from graphsurgery.errors import SurgeryError
    from graphsurgery.models.specs import names_file

    if names_file(model):
        return opening.graph(model, data.input_shape)
    if opening.answer is not None:
        raise SurgeryError("--answer: tickets of a spec are drawn again and again; give it an output of its own")
    return None


def _show_weights(session: Session, graph: ModelGraph, plan: LotteryPlan) -> None:
    """How many weights there are, and how many the last ticket has."""
    from graphsurgery.surgery.masks.mask_set import MaskSet
    from graphsurgery.surgery.masks.selection import select

    masks = MaskSet.ones(graph)
    last = select(graph, masks, plan.density, replace(plan.selection, criterion="random"))
    words = f"{masks.total:,} in {len(masks)} tensors; the sparsest ticket has {last.kept:,}"
    session.screen.line("weights", words)

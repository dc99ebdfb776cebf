"""`graphsurgery compress`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Examples, MaybeDataset, Model
from graphsurgery.cli.compressing import (
    MEASURING,
    Measuring,
    calibration_of,
    show_costs,
    show_cut_check,
    show_dead,
    show_latency,
    show_plan,
    show_promise,
    show_steps,
    unlabelled,
)
from graphsurgery.cli.editing import EDITING, Editing, EditSession, data_of
from graphsurgery.cli.options import Output, again
from graphsurgery.cli.running import RUNNING, Running
from graphsurgery.errors import SurgeryError
from graphsurgery.training.loop.plan import Execution

if TYPE_CHECKING:
    from graphsurgery.graph import ModelGraph
    from graphsurgery.onnx.runtime.latency import Timing
    from graphsurgery.recipes.compression.recovery import Recovery
    from graphsurgery.recipes.compression.shrink import Cut
    from graphsurgery.recipes.compression.to_latency import NetworkFiles


@Parameter(name="*", group="Cutting")
@dataclass(frozen=True)
class Cutting:
    """What is cut, and which channels go."""

    keep: float | None = None
    """Share of the channels that stays in every space, above 0 and at most 1."""
    target: str | None = None
    """What the network may cost at most: params=0.5x, macs=300M, size=4MB, width=0.75, or measured in ONNX Runtime
    latency=0.5x or latency=5ms. The widths are searched."""
    keep_space: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    """NAME=N for a number of channels of one space, NAME=0.25 for a share; may be given again, and prevails. Without
    --keep and --target the other spaces stay whole."""
    ranking: Literal["per-space", "global"] = "per-space"
    """For --target: every space keeps the same share, or the channels of all spaces compete."""
    uniform: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """For --target: spaces of one size get one size, so that a class with one number for all layers can hold the result
    (see install)."""
    min_width: int = 1
    """For --target: no space gets fewer channels."""
    max_cut: float = 0.9
    """For --target: no space loses a larger share."""
    within: Literal["groups", "same", "each", "best"] = "groups"
    """What goes where channels are in groups or heads: whole groups, the same channels of every group, others of each
    group, or whichever keeps the more important ones."""
    importance: str = "l2"
    """Which channels stay: l2, l1, bn, taylor (needs data), gate or random."""
    round_to: int | Literal["auto"] | None = None
    """Numbers of channels become multiples of this; auto finds by measuring what ONNX Runtime rewards. By default auto
    for a latency, else 1."""
    dead: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Remove the channels whose weights are all 0, as in a lottery ticket, and fold the constants that they give into
    what reads them. The outputs stay the same; nothing else is cut."""

    @property
    def to_latency(self) -> bool:
        """Whether the target is a latency."""
        return self.target is not None and self.target.strip().lower().startswith("latency")

    @property
    def auto_step(self) -> bool:
        """Whether the step of the widths is to be found."""
        return self.round_to == "auto" or (self.round_to is None and self.to_latency)

    @property
    def _uniform(self) -> dict[str, str]:
        return {"ranking": "uniform"} if self.uniform else {}

    def plan(self, seed: int) -> Cut:
        """The plan of this cut; a step that is to be found is 1 in it."""
        from graphsurgery.recipes.compression.shrink import Cut, parse_spaces
        from graphsurgery.surgery.channels.targets import parse_target

        limits = {"ranking": self.ranking, "min_width": self.min_width, "max_cut": self.max_cut}
        if self.uniform and (self.ranking == "global" or self.within in ("each", "best")):
            raise SurgeryError(
                "compress: --uniform cuts spaces of one size alike; leave out --ranking global, --within each and best"
            )
        if self.target is None and limits != {name: getattr(_CUTTING, name) for name in limits}:
            raise SurgeryError("compress: --ranking, --min-width and --max-cut say how a --target is met; give one")
        return Cut(
            keep=self.keep,
            target=None if self.target is None else parse_target(self.target, **limits | self._uniform),
            spaces=parse_spaces(self.keep_space),
            within=self.within,
            importance=self.importance,
            round_to=self.round_to if isinstance(self.round_to, int) else 1,
            seed=seed,
        )


@Parameter(name="*", group="Fine-tuning")
@dataclass(frozen=True)
class Tuning(Execution):
    """How accuracy is brought back, where data are given."""

    epochs: int | None = None
    """Fine-tune for so long, with a fresh optimizer: on --data by the plan the network was trained with, by default not
    at all; on --calib by default for some 2,000 steps."""
    lr: float | None = None
    """Learning rate of the fine-tuning; by default a tenth of the training's, on --calib 0.001."""
    recover: Literal["labels", "mimic"] | None = None
    """What is learnt: the labels, or what the network said before the cut, which needs none. By default labels; with
    --calib always mimic."""
    calib: Examples = None
    """Examples without labels to recover on: a folder of images, of .npy arrays of inputs as the network takes them, or
    of .npz files with an array for each input; or a data spec, whose labels are not looked at. A part is held out to
    measure agreement with the original. Images are prepared as the network says, or as FOLDER?mean=0.5&std=0.5 does
    (also resize, crop)."""

    def settings(self, seed: int) -> dict[str, Any]:
        """What changes in the plan of the training."""
        chosen = {**self.execution(), "seed": seed, "epochs": self.epochs, "lr": self.lr}
        return {name: value for name, value in chosen.items() if value is not None}

    def check(self, data: str | None) -> None:
        """Refuse what does not go together."""
        if self.calib is not None and self.recover == "labels":
            raise SurgeryError("compress: --calib gives examples without labels; leave out --recover labels")
        if data is None and self.calib is None:
            if self.epochs:
                raise SurgeryError(
                    f"compress: {self.epochs} epochs of fine-tuning need data; give --data, or --calib without labels"
                )
            if self.recover is not None:
                raise SurgeryError(f"compress: --recover {self.recover} needs examples; give --data or --calib")
        if not self.epochs and self.calib is None and (self.tracker != "none" or self.mixed_precision != "no"):
            raise SurgeryError(
                "compress: --tracker and --mixed-precision are of the fine-tuning; give --epochs with --data, or --calib"
            )


_CUTTING = Cutting()
_TUNING = Tuning()


def compress(
    model: Model,
    /,
    *,
    output: Output,
    data: MaybeDataset = None,
    cutting: Cutting = _CUTTING,
    measuring: Measuring = MEASURING,
    tuning: Tuning = _TUNING,
    run: Running = RUNNING,
    editing: Editing = EDITING,
) -> None:
    """Remove channels; the result equals the network with the removed reads masked. With data, bring accuracy back.

    Parameters
    ----------
    model
        A checkpoint, an .onnx file, a state_dict (.pt or .safetensors) with --arch, or a model spec. An .onnx file
        can be written back as one: -o small.onnx.
    data
        What the network was trained on: measures every step, and recalibrates BatchNorm unless --calib does.
    """
    session = EditSession.of(output, model, editing, reads=[data, tuning.calib])
    inputs = None
    tuning.check(data)
    if cutting.dead:
        if cutting != Cutting(dead=True) or tuning != _TUNING or measuring != MEASURING or data is not None:
            raise SurgeryError("compress: --dead changes no output and takes no other choice; run compress again after")
        small = show_dead(session, editing.opening.graph(model))
    else:
        plan = cutting.plan(editing.seed)
        if measuring != MEASURING and not (cutting.to_latency or cutting.auto_step):
            raise SurgeryError(
                "compress: --threads, --batch and --runs say how a latency is measured; give --target latency=0.5x or "
                "--round-to auto"
            )
        graph, recovery = _opened(model, data, tuning, editing)
        task = _Task(session, graph, recovery, cutting, tuning, measuring.timing(), editing.seed, run)
        small = task.compressed(plan, dry_run=editing.dry_run)
        inputs = recovery.inputs() if output.suffix == ".onnx" else None
        del task, graph  # the proof needs the memory of the network before the cut
    if editing.dry_run:
        session.would_write()
        return
    session.write(small, inputs=inputs)


def _opened(model: str, data: str | None, tuning: Tuning, editing: Editing) -> tuple[ModelGraph, Recovery]:
    """What is to be compressed, and what it can be brought back with; checked against each other."""
    from graphsurgery.recipes.compression.recovery import Recovery
    from graphsurgery.training.data.loading import check_fits

    opening, seed = editing.opening, editing.seed
    examples = opening.data(data, model, seed=seed) if data else None
    others = unlabelled(tuning.calib, model, opening, seed)
    first = examples or others
    graph = opening.graph(model, first.input_shape if first else None)
    if examples is not None:
        check_fits(examples, graph.module, name=model)
    calibration = None if tuning.calib is None else calibration_of(tuning.calib, model, opening, others, graph, seed)
    return graph, Recovery(examples, calibration, tuning.recover)


@dataclass(frozen=True)
class _Task:
    """One network to compress, and how."""

    session: EditSession
    graph: ModelGraph
    recovery: Recovery
    cutting: Cutting
    tuning: Tuning
    timing: Timing
    seed: int
    run: Running

    def compressed(self, plan: Cut, *, dry_run: bool) -> ModelGraph:
        """The network that is written; what is known of it goes into the document. A dry run only shows the plan."""
        document = self.session.document
        with self.files() as files:
            small, plan = self.cut(plan, files)
            document["cut"] = asdict(plan)
            if dry_run:
                show_plan(self.session.screen, small)
                document |= show_costs(self.session.screen, self.graph, small)
                self.show_moved(small)
                return small
            document["check"] = show_cut_check(self.session.screen, self.graph, small, self.seed)
            small = self.recovered(small, plan)
            if files is not None and self.cutting.to_latency:
                assert plan.target is not None
                document["promise"] = show_promise(self.session.screen, plan.target, files, small, self.timing)
        return small

    def files(self) -> AbstractContextManager[NetworkFiles | None]:
        """The files that are timed, if any: an .onnx file that is written back is the original itself."""
        from graphsurgery.recipes.compression.to_latency import network_files

        if not self.cutting.auto_step and not self.cutting.to_latency:
            return nullcontext()
        return network_files(self.graph, self.session.model if self.session.output.suffix == ".onnx" else None)

    def cut(self, plan: Cut, files: NetworkFiles | None) -> tuple[ModelGraph, Cut]:
        """The network that is cut, and by what plan; what was measured for it is shown."""
        from graphsurgery.recipes.compression.cost_table import FileBench
        from graphsurgery.recipes.compression.shrink import cut
        from graphsurgery.recipes.compression.to_latency import cut_to_latency, rewarded_step

        screen, data = self.session.screen, self.recovery.data
        if files is None:
            return cut(self.graph, plan, data), plan
        screen.line("timing", f"ONNX Runtime, {self.timing}")
        if not self.cutting.to_latency:
            steps = rewarded_step(self.graph, FileBench(files.original, self.graph, self.timing))
            self.session.document["steps"] = show_steps(screen, steps)
            plan = replace(plan, round_to=steps.step)
            return cut(self.graph, plan, data), plan
        auto = self.cutting.auto_step
        small, found = cut_to_latency(self.graph, plan, files, self.timing, auto_step=auto, data=data)
        self.session.document["latency"] = show_latency(screen, found)
        return small, found.plan

    def recovered(self, small: ModelGraph, plan: Cut) -> ModelGraph:
        """With examples recalibrated and fine-tuned; what that gave is shown."""
        from graphsurgery.reports.tables import OutcomeTable

        session, screen = self.session, self.session.screen
        outcome = None
        if self.recovery.possible:
            training = self.recovery.plan(self.graph, **self.tuning.settings(self.seed))
            calib = {} if self.tuning.calib is None else {"calib": self.tuning.calib}
            config = {"command": "compress", "model": session.model, **self.recovery.config(plan, training), **calib}
            folder = self.run.open(screen, config, trains=training.epochs > 0)
            reporter = screen.reporter()
            small, outcome = self.recovery.run(self.graph, small, plan, training, run=folder, reporter=reporter)
        session.document |= show_costs(screen, self.graph, small)
        self.show_moved(small)
        if outcome is not None:
            screen.show(OutcomeTable(outcome))
            session.document["outcome"] = outcome.as_dict()
        return small

    def show_moved(self, small: ModelGraph) -> None:
        """What the cut did to the outputs, where nothing is there to measure and recover it on."""
        if self.recovery.possible:
            return
        recover = again("--data", data_of(self.graph), "--epochs", "10")
        if self.session.model.endswith(".onnx"):  # labels for somebody else's file are rarely at hand
            recover = again("--calib", "FOLDER", "--recover", "mimic")
        self.session.show_moved(self.graph, small, recover, seed=self.seed)

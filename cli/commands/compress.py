"""`graphsurgery compress`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from graphsurgery.cli.options import (
    OPENING,
    PROOF,
    SHOWN,
    WRITING,
    DryRun,
    Opening,
    Output,
    Proof,
    Seed,
    Shown,
    Writing,
    again,
    note_images,
    said_of_images,
    without_dry_run,
)
from graphsurgery.cli.output import data_of, show_moved, write_network, writes_to
from graphsurgery.cli.running import RUNNING, Running
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from graphsurgery.cli.output import Screen
    from graphsurgery.graph import ModelGraph
    from graphsurgery.onnx.runtime.latency import Timing
    from graphsurgery.recipes.compression.cost_table import Steps
    from graphsurgery.recipes.compression.shrink import Cut
    from graphsurgery.recipes.compression.to_latency import LatencyCut, NetworkFiles
    from graphsurgery.training.data.calibration import Calibration
    from graphsurgery.training.data.dataset import Data


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


@Parameter(name="*", group="Latency")
@dataclass(frozen=True)
class Measuring:
    """How a latency is measured: ONNX Runtime on the CPU, the networks in turn after a warm-up, the median."""

    threads: Annotated[int, Parameter(validator=Number(gte=1))] = 1
    """Threads that an operator may use."""
    batch: Annotated[int, Parameter(validator=Number(gte=1))] = 1
    """Examples in one run."""
    runs: Annotated[int, Parameter(validator=Number(gte=1))] = 50
    """Timed runs of each network."""

    def timing(self) -> Timing:
        """The same for what measures."""
        from graphsurgery.onnx.runtime.latency import Timing

        return Timing(threads=self.threads, batch=self.batch, runs=self.runs)


@Parameter(name="*", group="Fine-tuning")
@dataclass(frozen=True)
class Tuning:
    """How accuracy is brought back, where data are given."""

    epochs: int | None = None
    """Fine-tune for so long, with a fresh optimizer: on --data by the plan the network was trained with, by default not
    at all; on --calib by default for some 2,000 steps."""
    lr: float | None = None
    """Learning rate of the fine-tuning; by default a tenth of the training's, on --calib 0.001."""
    recover: Literal["labels", "mimic"] | None = None
    """What is learnt: the labels, or what the network said before the cut, which needs none. By default labels; with
    --calib always mimic."""
    calib: str | None = None
    """Examples without labels to recover on: a folder of images, or of .npy arrays of inputs as the network takes them;
    or a data spec, whose labels are not looked at. A part is held out to measure agreement with the original. Images
    are prepared as the network says, or as FOLDER?mean=0.5&std=0.5 does (also resize, crop)."""
    device: str = "auto"
    """Where to fine-tune: auto, cpu, cuda or any torch device."""

    def settings(self, seed: int) -> dict[str, Any]:
        """What changes in the plan of the training."""
        chosen: dict[str, Any] = {"device": self.device, "seed": seed}
        chosen |= {} if self.epochs is None else {"epochs": self.epochs}
        return chosen if self.lr is None else {**chosen, "lr": self.lr}

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


_CUTTING = Cutting()
_MEASURING = Measuring()
_TUNING = Tuning()


def compress(
    model: str,
    /,
    *,
    output: Output,
    data: str | None = None,
    cutting: Cutting = _CUTTING,
    measuring: Measuring = _MEASURING,
    tuning: Tuning = _TUNING,
    run: Running = RUNNING,
    seed: Seed = 0,
    dry_run: DryRun = False,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    proof: Proof = PROOF,
    shown: Shown = SHOWN,
) -> None:
    """Remove channels; the result equals the network with the removed reads masked. With data, bring accuracy back.

    Parameters
    ----------
    model
        A checkpoint, a state_dict with --arch, an .onnx file, or a model spec. An .onnx file can be written as one:
        -o small.onnx.
    data
        What the network was trained on: measures every step, and recalibrates BatchNorm unless --calib does.
    """
    writes_to(output, model, writing, reads=[data, tuning.calib, opening.arch])
    from graphsurgery.cli.output import Screen

    inputs = None
    tuning.check(data)
    screen = Screen(shown)
    if cutting.dead:
        if cutting != Cutting(dead=True) or tuning != _TUNING or measuring != _MEASURING or data is not None:
            raise SurgeryError("compress: --dead changes no output and takes no other choice; run compress again after")
        small, document = _without_dead(screen, opening.graph(model), model)
    else:
        plan = cutting.plan(seed)
        if measuring != _MEASURING and not (cutting.to_latency or cutting.auto_step):
            raise SurgeryError(
                "compress: --threads, --batch and --runs say how a latency is measured; give --target latency=0.5x or "
                "--round-to auto"
            )
        task = _task(screen, model, data, opening, cutting, tuning, measuring.timing(), seed, run)
        small, document = task.compressed(plan, output, dry_run=dry_run)
        inputs = task.real_inputs(output)
        del task  # and with it the network before the cut: the proof needs its memory
    if dry_run:
        screen.line("dry run", f"would write {output}")
        screen.finish(document, *without_dry_run())
        return
    write_network(screen, small, output, model, document, proof=proof, inputs=inputs)


def _task(
    screen: Screen,
    model: str,
    data: str | None,
    opening: Opening,
    cutting: Cutting,
    tuning: Tuning,
    timing: Timing,
    seed: int,
    run: Running,
) -> _Task:
    """What is to be compressed, opened and checked."""
    from graphsurgery.training.data.loading import check_fits

    examples = opening.data(data, model, seed=seed) if data else None
    unlabelled = _unlabelled(tuning.calib, model, opening, seed)
    first = examples or unlabelled
    graph = opening.graph(model, first.input_shape if first else None)
    if examples is not None:
        check_fits(examples, graph.module, name=model)
    calibration = None if tuning.calib is None else _calibration(tuning.calib, model, opening, unlabelled, graph, seed)
    return _Task(screen, model, graph, examples, calibration, cutting, tuning, timing, seed, run)


def _unlabelled(calib: str | None, model: str, opening: Opening, seed: int) -> Data | None:
    """The data that a spec names; None for a folder."""
    from graphsurgery.models.spec_text import is_function_spec
    from graphsurgery.training.data.calibration import folder_and_options

    if calib is None or (":" not in calib and folder_and_options(calib)[0].is_dir()):
        return None
    name = calib.partition("?")[0]
    if "/" in name.partition(":")[0] and not is_function_spec(name):
        raise SurgeryError(f"{calib}: is not a folder; give --calib one with images or .npy arrays, or a data spec")
    return opening.data(calib, model, seed=seed)


def _calibration(
    calib: str, model: str, opening: Opening, data: Data | None, graph: ModelGraph, seed: int
) -> Calibration:
    """The examples to recover on, checked against the network."""
    from graphsurgery.recipes.compression.label_free import check_calibration
    from graphsurgery.training.data.calibration import calibration_of, read_calibration

    if data is not None:
        found = calibration_of(data)
    else:
        if len(graph.inputs) != 1:
            raise SurgeryError(f"{calib}: has single inputs, the network takes {len(graph.inputs)}")
        said = said_of_images(model, arch=opening.arch)
        first = graph.inputs[0]
        found = read_calibration(calib, first.shape[1:], first.dtype, seed=seed, preprocessing=said)
        note_images(calib, found.preprocessing)
    check_calibration(found, graph)
    return found


def show_cut_check(screen: Screen, before: ModelGraph, small: ModelGraph, seed: int) -> dict[str, Any]:
    """Show that a cut network is the original with masked reads, or by how much it is not where nothing is promised.

    Raises:
        CheckFailedError: the contract does not hold.
    """
    from dataclasses import asdict

    from graphsurgery.errors import CheckFailedError
    from graphsurgery.recipes.contracts.edit_checks import check_cut
    from graphsurgery.surgery.deviation import UnlikeError

    try:
        found = check_cut(before, small, seed)
    except UnlikeError as cause:
        raise CheckFailedError(
            f"compress: the cut network is unlike the original: {cause}; nothing was written"
        ) from cause
    if found.check is None:
        words = f"cut = reads masked is not exact, as {found.why}: {found.deviation:.1e} of the largest output"
        screen.line("check", words, "yellow")
        return asdict(found)
    screen.require(found.check)
    return asdict(found)


def removal_of(small: ModelGraph) -> Mapping[str, Any]:
    """What the cut of a network recorded."""
    from graphsurgery.recipes.compression.shrink import removal

    return removal(small)


@dataclass(frozen=True)
class _Task:
    """One network to compress, and how."""

    screen: Screen
    model: str
    graph: ModelGraph
    data: Data | None
    calibration: Calibration | None
    cutting: Cutting
    tuning: Tuning
    timing: Timing
    seed: int
    run: Running

    def compressed(self, plan: Cut, output: Path, *, dry_run: bool) -> tuple[ModelGraph, dict[str, Any]]:
        """The network that is written, and what is known of it; a dry run only shows the plan."""
        from dataclasses import asdict

        with self.files(output) as files:
            small, plan, found = self.cut(plan, files)
            document: dict[str, Any] = {"model": self.model, "cut": asdict(plan), **found}
            if dry_run:
                _show_plan(self.screen, removal_of(small))
                document |= _show_costs(self.screen, self.graph, small)
                return small, document | self.show_moved(small)
            document["check"] = show_cut_check(self.screen, self.graph, small, self.seed)
            small, found = self.recover(small, plan)
            document |= found
            if files is not None and self.cutting.to_latency:
                document |= self.keep(small, plan, files)
        return small, document

    def files(self, output: Path) -> AbstractContextManager[NetworkFiles | None]:
        """The files that are timed, if any: an .onnx file that is written back is the original itself."""
        from graphsurgery.recipes.compression.to_latency import network_files

        if not self.cutting.auto_step and not self.cutting.to_latency:
            return nullcontext()
        return network_files(self.graph, self.model if output.suffix == ".onnx" else None)

    def cut(self, plan: Cut, files: NetworkFiles | None) -> tuple[ModelGraph, Cut, dict[str, Any]]:
        """The network that is cut, by what plan, and what was measured for it."""
        from dataclasses import replace

        from graphsurgery.recipes.compression.cost_table import FileBench
        from graphsurgery.recipes.compression.shrink import cut
        from graphsurgery.recipes.compression.to_latency import cut_to_latency, rewarded_step

        if files is None:
            return cut(self.graph, plan, self.data), plan, {}
        self.screen.line("timing", f"ONNX Runtime, {self.timing}")
        if not self.cutting.to_latency:
            steps = rewarded_step(self.graph, FileBench(files.original, self.graph, self.timing))
            _show_steps(self.screen, steps)
            plan = replace(plan, round_to=steps.step)
            return cut(self.graph, plan, self.data), plan, {"steps": steps.as_dict()}
        small, found = cut_to_latency(
            self.graph, plan, files, self.timing, auto_step=self.cutting.auto_step, data=self.data
        )
        _show_latency(self.screen, found)
        return small, found.plan, {"latency": found.as_dict()}

    def recover(self, small: ModelGraph, plan: Cut) -> tuple[ModelGraph, dict[str, Any]]:
        """With examples recalibrate and fine-tune, and show what that gave."""
        from dataclasses import asdict

        from graphsurgery.recipes.compression.label_free import label_free_plan, recover_without_labels
        from graphsurgery.recipes.compression.shrink import fine_tuning, shrink
        from graphsurgery.reports.tables import OutcomeTable

        screen, tuning, settings = self.screen, self.tuning, self.tuning.settings(self.seed)
        if self.data is None and self.calibration is None:
            return small, {**_show_costs(screen, self.graph, small), **self.show_moved(small)}
        if self.calibration is not None:
            training = label_free_plan(self.calibration, **settings)
        else:
            training = fine_tuning(self.graph, **settings)
        config: dict[str, Any] = {
            "command": "compress",
            "model": self.model,
            "cut": asdict(plan),
            "plan": asdict(training),
        }
        config |= {} if tuning.recover in (None, "labels") else {"recover": tuning.recover}
        config |= {} if tuning.calib is None else {"calib": tuning.calib}
        folder = self.run.open(screen, config, trains=training.epochs > 0)
        reporter = screen.reporter()
        if self.calibration is not None:
            small, outcome = recover_without_labels(
                self.graph, small, self.calibration, training, data=self.data, run=folder, reporter=reporter
            )
        else:
            assert self.data is not None
            recover = tuning.recover or "labels"
            small, outcome = shrink(
                self.graph, plan, self.data, training, recover=recover, small=small, run=folder, reporter=reporter
            )
        costs = _show_costs(screen, self.graph, small)
        screen.show(OutcomeTable(outcome))
        return small, {**costs, "outcome": outcome.as_dict()}

    def show_moved(self, small: ModelGraph) -> dict[str, Any]:
        """What the cut did to the outputs, where nothing is there to measure and recover it on."""
        if self.data is not None or self.calibration is not None:
            return {}
        recover = again("--data", data_of(self.graph), "--epochs", "10")
        if self.model.endswith(".onnx"):  # labels for somebody else's file are rarely at hand
            recover = again("--calib", "FOLDER", "--recover", "mimic")
        return show_moved(self.screen, self.graph, small, recover, seed=self.seed)

    def real_inputs(self, output: Path) -> Sequence[Tensor] | None:
        """Some of the examples, for the proof of an `.onnx` file."""
        from graphsurgery.recipes.delivery.quantize import first_inputs

        if output.suffix != ".onnx" or (self.data is None and self.calibration is None):
            return None
        if self.calibration is not None:
            return first_inputs(self.calibration.held)
        assert self.data is not None
        held = self.data.validation
        return first_inputs(held if len(held) else self.data.train)  # type: ignore[arg-type]

    def keep(self, small: ModelGraph, plan: Cut, files: NetworkFiles) -> dict[str, Any]:
        """Measure the promise on the network that is written; it fails where it is not kept."""
        from graphsurgery.recipes.compression.to_latency import measure_promise, require_kept

        assert plan.target is not None
        promise = measure_promise(plan.target, files, small, self.timing)
        require_kept(promise)
        self.screen.line("promise", f"{promise}; {promise.pair.after.runs} runs of each", "green")
        busy = promise.pair.before.interrupted + promise.pair.after.interrupted
        if busy > 0.1 * 2 * promise.pair.after.runs:
            self.screen.line("note", f"the machine was busy: {busy} runs were interrupted again and again", "yellow")
        return {"promise": promise.as_dict()}


def _show_steps(screen: Screen, steps: Steps) -> None:
    """Which step the runtime rewards, and why."""
    found = ", ".join(f"{step}: {100 * part:.0f} %" for step, part in steps.saved.items())
    if not steps.spaces:
        screen.line("round to", "1: no space is large enough to measure steps")
        return
    screen.line(
        "round to",
        f"{steps.step}; channels between multiples save so much of their share of the time, in "
        f"{', '.join(steps.spaces)}: {found}",
    )


def _show_latency(screen: Screen, found: LatencyCut) -> None:
    """How the widths were found."""
    if found.steps is not None:
        _show_steps(screen, found.steps)
        if found.plan.round_to != found.steps.step:
            screen.line("round to", f"{found.plan.round_to}; larger steps do not reach the target")
    table = found.table
    missing = f"; not in it: {', '.join(table.unmeasured)}" if table.unmeasured else ""
    screen.line("table", f"{len(table.spaces)} spaces, {table.networks} networks in {table.seconds:.0f} s{missing}")
    tried = ", ".join(f"{predicted:.3f}x → {measured:.3f}x" for predicted, measured in found.attempts)
    screen.line("search", f"predicted by the table → measured: {tried}")
    screen.line("latency", str(found.promise))


def _without_dead(screen: Screen, graph: ModelGraph, model: str) -> tuple[ModelGraph, dict[str, Any]]:
    """Remove dead channels, and show what the network is masked and what it is compressed."""
    from graphsurgery.cli.output import columns, count
    from graphsurgery.recipes.compression.dead import without_dead

    small, report = without_dead(graph)
    numbers = ["parameters", "weights not 0", "MACs", "ONNX file", "latency (ms)"]
    table = columns("", *numbers, right=numbers)
    for name, found in (("masked", report.masked), ("compressed", report.compressed)):
        living = f"{count(found.living)} of {count(found.weights)}"
        size = f"{count(found.onnx_bytes)}B"
        table.add_row(name, count(found.parameters), living, count(found.macs), size, f"{found.latency:.3f}")
    screen.show(table)
    changed = {name: sizes for name, sizes in small.lineage[-1]["sizes"].items() if sizes[0] != sizes[1]}
    spaces = ", ".join(f"{name} {before} to {after}" for name, (before, after) in changed.items())
    screen.line("channels", spaces or "none is dead: every channel has a weight that is not 0")
    screen.require(report.check)
    return small, {"model": model, "dead": report.as_dict(), "sizes": small.lineage[-1]["sizes"]}


def _show_plan(screen: Screen, removed: Mapping[str, Any]) -> None:
    """Every space that was looked at: its channels before and after."""
    from graphsurgery.cli.output import columns

    words = {"each": "others in each group", "same": "the same in every group"}
    table = columns("space", "before", "after", "", right=["before", "after"])
    for name, (before, after) in removed["sizes"].items():
        note = words.get(removed["inside groups"].get(name), "")
        table.add_row(name, str(before), str(after), "whole" if before == after else note)
    screen.show(table)


def _show_costs(screen: Screen, graph: ModelGraph, small: ModelGraph) -> dict[str, Any]:
    """The costs before and after, and the target and what is reached of it."""
    from graphsurgery.recipes.compression.shrink import removal
    from graphsurgery.surgery.channels.targets import amount_text

    document = {**screen.costs(graph, small), "sizes": removal(small)["sizes"]}
    target = removal(small).get("target")
    if target is not None:
        before_text, after_text = (amount_text(target["quantity"], target[key]) for key in ("before", "reached"))
        number, _, unit = after_text.partition(" ")
        share = target["reached"] / max(1, target["before"])
        of = before_text.removesuffix(f" {unit}")
        kind = " by the table" if target["quantity"] == "latency" else ""
        screen.line("target", f"{target['asked']}: {number} of {of} {unit} ({share:.4g}x){kind}")
        document |= {"target": target["asked"], "reached": target["reached"]}
    return document

"""`graphsurgery compress`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from graphsurgery.cli.arguments.cutting import CUTTING, MEASURING, TUNING, Cutting, Measuring, Tuning
from graphsurgery.cli.arguments.sources import MaybeDataset, Model
from graphsurgery.cli.compressing import (
    Compressed,
    CutSession,
    calibration_of,
    outcome_of_cut,
    show_costs,
    show_cut_check,
    show_dead,
    show_latency,
    show_plan,
    show_promise,
    show_steps,
    unlabelled,
)
from graphsurgery.cli.editing import EDITING, Editing, check_size, data_of
from graphsurgery.cli.options import Output, again
from graphsurgery.cli.process.watching import is_alone
from graphsurgery.cli.running import RUNNING, Running
from graphsurgery.cli.streaming import Unwanted, compress_stored, streams
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from graphsurgery.graph import ModelGraph
    from graphsurgery.onnx.runtime.latency import Timing
    from graphsurgery.recipes.compression.recovery import Recovery
    from graphsurgery.recipes.compression.shrink import Cut
    from graphsurgery.recipes.compression.to_latency import NetworkFiles
    from graphsurgery.surgery.channels.targets import Target


def compress(
    model: Model,
    /,
    *,
    output: Output,
    data: MaybeDataset = None,
    onnx: Path | None = None,
    report: Path | None = None,
    cutting: Cutting = CUTTING,
    measuring: Measuring = MEASURING,
    tuning: Tuning = TUNING,
    run: Running = RUNNING,
    editing: Editing = EDITING,
) -> None:
    """Remove channels; the result equals the network with the removed reads masked. With data, bring accuracy back.

    Parameters
    ----------
    model
        A checkpoint, an .onnx file, a state_dict (.pt or .safetensors) with --arch, or a model spec. An .onnx file
        can be written back as one: -o small.onnx; a folder of Hugging Face (hf:FOLDER) as another: -o small.
    data
        What the network was trained on: measures every step, and recalibrates BatchNorm unless --calib does.
    onnx
        Also write the result as an ONNX file, compared and timed; a latency that is asked for is promised of it.
    report
        Also write an HTML report.
    """
    if onnx is not None and output.suffix == ".onnx":
        raise SurgeryError(f"compress: {output} is an ONNX file already; leave out --onnx, or give -o small.pt")
    if streams(model, output):
        unwanted = Unwanted(tuning, measuring, {"--data": data, "--onnx": onnx})
        return compress_stored(model, output, report, cutting, editing, unwanted)
    beside = {"onnx": onnx, "report": report}
    session = CutSession.of(output, model, editing, reads=[data, tuning.calib], beside=beside)
    tuning.check(data)
    if cutting.dead:
        if cutting != Cutting(dead=True) or tuning != TUNING or measuring != MEASURING or data is not None:
            raise SurgeryError("compress: --dead changes no output and takes no other choice; run compress again after")
        _end(session, show_dead(session, editing.opening.graph(model)), dry_run=editing.dry_run)
        return
    plan = cutting.plan(editing.seed)
    _check_measuring(cutting, measuring)
    session.document |= {} if data is None else {"data": data}
    graph, recovery = _opened(model, data, tuning, editing)
    check_size(graph, output, cutting.target)
    task = _Task(session, graph, recovery, cutting, tuning, measuring.timing(), editing.seed, run)
    del graph
    with task.files() as files:
        made = task.compressed(plan, files, dry_run=editing.dry_run)
        del task  # the proof of an .onnx file that is written back needs the memory of the network before the cut
        _end(session, made, dry_run=editing.dry_run)


def _check_measuring(cutting: Cutting, measuring: Measuring) -> None:
    """Refuse to measure where nothing asks for it, or where several processes would."""
    if measuring != MEASURING and not (cutting.to_latency or cutting.auto_step):
        raise SurgeryError(
            "compress: --threads, --batch and --runs say how a latency is measured; give --target latency=0.5x or "
            "--round-to auto"
        )
    if (cutting.to_latency or cutting.auto_step) and not is_alone():
        raise SurgeryError("compress: each of several processes would measure another latency; start one")


def _end(session: CutSession, made: Compressed, *, dry_run: bool) -> None:
    if dry_run:
        session.would_write()
    else:
        session.deliver(made)


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

    session: CutSession
    graph: ModelGraph
    recovery: Recovery
    cutting: Cutting
    tuning: Tuning
    timing: Timing
    seed: int
    run: Running

    def compressed(self, plan: Cut, files: NetworkFiles | None, *, dry_run: bool) -> Compressed:
        """The network that is written; what is known of it goes into the document. A dry run only shows the plan."""
        session, document, graph = self.session, self.session.document, self.graph
        small, plan = self.cut(plan, files)
        document["cut"] = asdict(plan)
        if dry_run:
            show_plan(session.screen, small)
            document |= show_costs(session.screen, graph, small)
            return self.unrecovered(small)
        contract = show_cut_check(session.screen, graph, small, self.seed)
        document["check"] = asdict(contract)
        made = self.recovered(small, plan) if self.recovery.possible else self.measured(small)
        checks = () if contract.check is None else (contract.check,)
        outcome = replace(made.outcome, checks=(*checks, *made.outcome.checks))
        return replace(made, outcome=outcome, promise=self.promise(plan.target, files))

    def promise(self, target: Target | None, files: NetworkFiles | None) -> Callable[[Path], None] | None:
        """Measures on a file the latency that is asked for, if any."""
        if target is None or files is None or not self.cutting.to_latency:
            return None
        session, timing = self.session, self.timing

        def measure(file: Path) -> None:
            timed = partial(files.timed_file, file)
            promise = show_promise(session.screen, target, timed, timing)
            session.document["promise"], session.promised = promise.as_dict(), str(promise)

        return measure

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

    def recovered(self, small: ModelGraph, plan: Cut) -> Compressed:
        """With examples recalibrated and fine-tuned; what that gave is shown."""
        from graphsurgery.reports.tables import OutcomeTable

        session, screen = self.session, self.session.screen
        training = self.recovery.plan(self.graph, **self.tuning.settings(self.seed))
        calib = {} if self.tuning.calib is None else {"calib": self.tuning.calib}
        config = {"command": "compress", "model": session.model, **self.recovery.config(plan, training), **calib}
        reads = [session.model, self.tuning.calib, self.recovery.teaching]
        folder = self.run.open(screen, config, reads=reads, trains=training.epochs > 0)
        reporter = screen.reporter()
        small, outcome = self.recovery.run(self.graph, small, plan, training, run=folder, reporter=reporter)
        session.document |= show_costs(screen, self.graph, small)
        screen.show(OutcomeTable(outcome))
        session.document["outcome"] = outcome.as_dict()
        inputs = self.recovery.inputs() if {"onnx", ".onnx"} & {*session.files, session.output.suffix} else None
        return Compressed(self.kept, small, outcome, inputs)

    def measured(self, small: ModelGraph) -> Compressed:
        """Without examples; what it costs is shown, and by how much the outputs move."""
        self.session.document |= show_costs(self.session.screen, self.graph, small)
        return self.unrecovered(small)

    def unrecovered(self, small: ModelGraph) -> Compressed:
        """What the cut did to the outputs, where nothing is there to measure and recover it on."""
        session, verdict = self.session, ""
        if not self.recovery.possible:
            recover = again("--data", data_of(self.graph), "--epochs", "10")
            if session.model.endswith(".onnx"):  # labels for somebody else's file are rarely at hand
                recover = again("--calib", "FOLDER", "--recover", "mimic")
            verdict = session.show_moved(self.graph, small, recover, seed=self.seed)
        config = {"model": session.model, "cut": session.document["cut"]}
        return Compressed(self.kept, small, outcome_of_cut("compressed", self.graph, small, verdict, config))

    @property
    def kept(self) -> ModelGraph | None:
        """The network before the cut, where what is delivered is timed beside it."""
        return self.graph if "onnx" in self.session.files else None

"""What the command that removes channels opens beside the network, and what it shows of a cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphsurgery.cli.editing import EditSession
from graphsurgery.cli.options import Opening
from graphsurgery.cli.session import write_page

if TYPE_CHECKING:
    from torch import Tensor

    from graphsurgery.cli.output import Screen
    from graphsurgery.graph import ModelGraph
    from graphsurgery.onnx.runtime.latency import Pair, Timing
    from graphsurgery.recipes.compression.cost_table import CostTable, Steps
    from graphsurgery.recipes.compression.to_latency import LatencyCut, Promise
    from graphsurgery.recipes.contracts.edit_checks import CutCheck
    from graphsurgery.recipes.outcome import Outcome
    from graphsurgery.surgery.channels.targets import Target
    from graphsurgery.training.data.calibration import Calibration
    from graphsurgery.training.data.dataset import Data


def unlabelled(calib: str | None, model: str, opening: Opening, seed: int) -> Data | None:
    """The data that a spec names; None for a folder."""
    from graphsurgery.training.data.calibration import folder_and_options

    if calib is None or (":" not in calib and folder_and_options(calib)[0].is_dir()):
        return None
    return opening.data(calib, model, seed=seed)


def calibration_of(
    calib: str, model: str, opening: Opening, data: Data | None, graph: ModelGraph, seed: int
) -> Calibration:
    """The examples to recover on, checked against the network."""
    from graphsurgery.recipes.compression.label_free import check_calibration
    from graphsurgery.training.data import calibration

    if data is None:
        found = opening.examples(calib, model, graph.inputs, seed=seed)
    else:
        found = calibration.calibration_of(data)
    check_calibration(found, graph)
    return found


def show_cut_check(screen: Screen, before: ModelGraph, small: ModelGraph, seed: int) -> CutCheck:
    """Show that a cut network is the original with masked reads, or by how much it is not where nothing is promised.

    Raises:
        CheckFailedError: the contract does not hold.
    """
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
        return found
    screen.require(found.check)
    return found


def show_plan(screen: Screen, small: ModelGraph) -> None:
    """Every space that was looked at: its channels before and after."""
    from graphsurgery.cli.output import columns
    from graphsurgery.recipes.compression.shrink import removal

    removed = removal(small)
    words = {"each": "others in each group", "same": "the same in every group"}
    table = columns("space", "before", "after", "", right=["before", "after"], marks=["space"])
    for name, (before, after) in removed["sizes"].items():
        note = words.get(removed["inside groups"].get(name), "")
        table.add_row(name, str(before), str(after), "whole" if before == after else note)
    screen.show(table)


def show_costs(screen: Screen, graph: ModelGraph, small: ModelGraph) -> dict[str, Any]:
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


def show_steps(screen: Screen, steps: Steps) -> dict[str, Any]:
    """Which step the runtime rewards, and why; the same for the document."""
    found = ", ".join(f"{step}: {100 * part:.0f} %" for step, part in steps.saved.items())
    words = "1: no space is large enough to measure steps"
    if steps.spaces:
        words = f"{steps.step}; channels between multiples save so much of their share of the time, in "
        words += f"{', '.join(steps.spaces)}: {found}"
    screen.line("round to", words)
    return steps.as_dict()


def show_table(screen: Screen, table: CostTable) -> dict[str, Any]:
    """What was measured of the operators; the same for the document."""
    missing = f"; not in it: {', '.join(table.unmeasured)}" if table.unmeasured else ""
    screen.line("table", f"{len(table.spaces)} spaces, {table.networks} networks in {table.seconds:.0f} s{missing}")
    return table.as_dict()


def show_latency(screen: Screen, found: LatencyCut) -> dict[str, Any]:
    """How the widths were found; the same for the document."""
    if found.steps is not None:
        show_steps(screen, found.steps)
        if found.plan.round_to != found.steps.step:
            screen.line("round to", f"{found.plan.round_to}; larger steps do not come near the target from below")
    show_table(screen, found.table)
    tried = ", ".join(f"{predicted:.3f}x → {measured:.3f}x" for predicted, measured in found.attempts)
    screen.line("search", f"predicted by the table → measured: {tried}")
    screen.line("latency", str(found.promise))
    if found.missed:
        screen.line("missed", found.missed, "yellow")
    return found.as_dict()


def show_promise(screen: Screen, target: Target, timed: Callable[[Timing], Pair], timing: Timing) -> Promise:
    """Measure the promise on the file that is delivered.

    Raises:
        CheckFailedError: it is not kept.
    """
    from graphsurgery.recipes.compression.to_latency import measure_promise, require_kept

    promise = measure_promise(target, timed, timing)
    require_kept(promise)
    screen.line("promise", f"{promise}; {promise.pair.after.runs} runs of each", "green")
    busy = promise.pair.before.interrupted + promise.pair.after.interrupted
    if busy > 0.1 * 2 * promise.pair.after.runs:
        screen.line("note", f"the machine was busy: {busy} runs were interrupted again and again", "yellow")
    return promise


@dataclass(frozen=True)
class Compressed:
    """A network that was cut, and what is known of it.

    Attributes:
        before: the network as it was, where what is delivered is timed beside it.
        graph: what is written.
        outcome: the table, with this network in its last row.
        inputs: real inputs that a file is proved on.
        promise: measures on a file the latency that was asked for, and refuses one that does not keep it.
    """

    before: ModelGraph | None
    graph: ModelGraph
    outcome: Outcome
    inputs: Sequence[Tensor] | None = None
    promise: Callable[[Path], object] | None = None


@dataclass
class CutSession(EditSession):
    """What the command that removes channels says and writes: the network, and beside it an ONNX file and a report.

    Attributes:
        promised: the latency that was measured on what is delivered, in words.
    """

    promised: str = ""

    def deliver(self, made: Compressed) -> None:
        """Write all that was asked for, the network first; where a latency is promised, the file that keeps it."""
        if not self.is_first:
            return
        outcome, exports = made.outcome, "onnx" in self.files
        if made.promise is not None and self.output.suffix != ".onnx":
            outcome = self.exported(made) if exports else self.tried(made)
            self.put(made.graph)
        else:
            self.put(made.graph, made.inputs, made.promise)
            self.report(outcome)
            outcome = self.exported(made) if exports else outcome
        self.report(outcome)
        self.finish(*(("view", self.files["onnx"]) if exports else ()))

    def exported(self, made: Compressed) -> Outcome:
        """Write the ONNX file, once it keeps what is promised of it; the outcome with what was measured of it."""
        from graphsurgery.recipes.delivery.deliver import deliver

        assert made.before is not None
        first, last = made.outcome.rows[0].name, made.outcome.rows[-1].name
        options: dict[str, Any] = {"inputs": made.inputs, "rtol": self.proof.rtol, "accept": made.promise}
        done = deliver(made.graph, self.files["onnx"], name=last, against={first: made.before}, **options)
        outcome = done.recorded(made.outcome)
        self.screen.checks(outcome.checks[-1:])
        self.screen.untested(done.check.remarks)
        before, after = (done.latency[name].median for name in (first, last))
        self.screen.line("latency", f"{after:.3f} ms after {before:.3f} ms (median, batch 1, 1 thread)")
        self.document |= {"onnx": done.check.as_dict(), "outcome": outcome.as_dict()}
        return outcome

    def tried(self, made: Compressed) -> Outcome:
        """Measure a promise on the export of a network of which only the checkpoint is kept."""
        from tempfile import TemporaryDirectory

        from graphsurgery.onnx.exporting.exporter import export_onnx

        assert made.promise is not None
        with TemporaryDirectory() as folder:
            file = Path(folder, "network.onnx")
            export_onnx(made.graph, file, check=False)
            made.promise(file)
        self.screen.line("note", "timed as an ONNX file, which --onnx FILE keeps")
        return made.outcome

    def report(self, outcome: Outcome) -> None:
        """Write the HTML report, where one is asked for."""
        if "report" in self.files:
            files = {what: str(path) for what, path in self.files.items()}
            verdict = "; ".join(filter(None, (self.promised, outcome.verdict)))
            write_page(
                replace(outcome, files=files, verdict=verdict),
                self.files["report"],
                str(self.document.get("data") or ""),
            )


def outcome_of_cut(
    title: str, graph: ModelGraph, small: ModelGraph, verdict: str, config: Mapping[str, Any]
) -> Outcome:
    """The table of a cut without data: what both networks cost."""
    from graphsurgery.recipes.outcome import Outcome, Row
    from graphsurgery.surgery.channels.cost import cost

    sizes = {"original": cost(graph), "cut": cost(small)}
    rows = tuple(Row(name, {}, {}, parameters=size.parameters, macs=size.macs) for name, size in sizes.items())
    return Outcome(title, rows, "", higher_is_better=True, verdict=verdict, config=config)


def show_dead(session: EditSession, graph: ModelGraph) -> Compressed:
    """Remove dead channels, and show what the network is masked and what it is compressed."""
    from graphsurgery.cli.output import columns, count
    from graphsurgery.recipes.compression.dead import without_dead
    from graphsurgery.recipes.outcome import Outcome, Row

    small, report = without_dead(graph)
    screen, rows = session.screen, []
    numbers = ["parameters", "weights not 0", "MACs", "ONNX file", "latency (ms)"]
    table = columns("", *numbers, right=numbers, drop=["weights not 0", "parameters"])
    for name, found in (("masked", report.masked), ("compressed", report.compressed)):
        living = f"{count(found.living)} of {count(found.weights)}"
        size = f"{count(found.onnx_bytes)}B"
        table.add_row(name, count(found.parameters), living, count(found.macs), size, f"{found.latency:.3f}")
        rows.append(Row(name, {}, {}, found.parameters, found.macs, found.latency, note=f"{living} weights are not 0"))
    screen.show(table)
    changed = {name: sizes for name, sizes in small.lineage[-1]["sizes"].items() if sizes[0] != sizes[1]}
    spaces = ", ".join(f"{name} {before} to {after}" for name, (before, after) in changed.items())
    screen.line("channels", spaces or "none is dead: every channel has a weight that is not 0")
    screen.require(report.check)
    session.document |= {"dead": report.as_dict(), "sizes": small.lineage[-1]["sizes"]}
    title, config = f"dead channels of {session.model}", {"model": session.model}
    outcome = Outcome(title, tuple(rows), "", higher_is_better=True, checks=(report.check,), config=config)
    return Compressed(graph, small, outcome)

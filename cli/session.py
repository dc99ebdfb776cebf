"""A command that writes: the options of all that do, what it says first and last, and the files in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from graphsurgery.cli.options import SHOWN, TOKENS, WRITING, DryRun, Shown, Writing, without_dry_run
from graphsurgery.cli.running import RUNNING, Running

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.graph import ModelGraph
    from graphsurgery.recipes.outcome import Outcome, Result
    from graphsurgery.training.loop.progress import Reporter


@Parameter(name="*")
@dataclass(frozen=True)
class Training:
    """What every command takes that trains."""

    run: Running = RUNNING
    dry_run: DryRun = False
    writing: Writing = WRITING
    shown: Shown = SHOWN


TRAINING = Training()


@dataclass
class Session:
    """What a command says and writes.

    Attributes:
        shown: what is printed.
        document: what was asked for; it stands in the network's file and in the JSON.
        files: what is written, by what it is.
    """

    shown: Shown
    document: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def screen(self) -> Screen:
        """Where it says it; made when a command has imported what it needs."""
        from graphsurgery.cli.output import Screen

        return Screen(self.shown)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        from graphsurgery.training.devices import process_rank

        return process_rank()[0] == 0

    def would(self, what: str) -> None:
        """End a dry run: what would be done, and the command that does it."""
        self.screen.line("dry run", f"would {what}")
        self.screen.finish(self.document, *without_dry_run())


@dataclass
class TrainingSession(Session):
    """The same of a command that trains.

    Attributes:
        asked: its options.
        reads: what the command opens.
        follows: what is trained when the network is there, such as `the controls`; empty where nothing is.
    """

    asked: Training = TRAINING
    reads: tuple[str | None, ...] = ()
    follows: str = ""

    @classmethod
    def of(cls, asked: Training, *, reads: Iterable[str | None], **files: Path | None) -> TrainingSession:
        """The session of these options, where its files can be written.

        Args:
            asked: what the command takes.
            reads: files, or specs that name some, that the command opens.
            files: what it writes, by what it is.

        Raises:
            SurgeryError: as for `Writing.allow`.
        """
        reads, written = tuple(reads), {name: path for name, path in files.items() if path is not None}
        asked.writing.allow(reads=reads, in_place=None, **files)
        return cls(asked.shown, files=written, asked=asked, reads=reads)

    def begin(self, command: str, settings: Mapping[str, Any], follows: str = "") -> dict[str, Any]:
        """Open the run folder; what a recipe takes of it, by the names of its arguments.

        Args:
            command: who trains.
            settings: what fixes the result.
            follows: see the class.
        """
        self.follows = follows
        reporter: Reporter = self.screen.reporter()
        run = self.asked.run.open(self.screen, {"command": command, **settings}, reads=self.reads)
        return {"run": run, "reporter": reporter}

    def keep(self, graph: ModelGraph) -> None:
        """Save a network before anything else is done."""
        from graphsurgery.checkpoint.files import save

        if self.is_first:
            save(graph, self.files["network"], **self.document)
            words = f", {self.follows} follow{'' if self.follows.endswith('s') else 's'}" if self.follows else ""
            self.screen.line("saved", f"{self.files['network']}{words}")

    def saved(self, result: Result[Outcome], write: Callable[..., object] | None = None) -> Outcome:
        """Save the network with its metrics; the outcome that names the files.

        Args:
            result: of the recipe.
            write: takes the path and what is stored with the network; by default it writes a checkpoint.
        """
        from functools import partial

        from graphsurgery.checkpoint.files import save

        if self.is_first:
            metrics = [asdict(row) for row in result.outcome.rows]
            (write or partial(save, result.graph))(self.files["network"], **self.document, metrics=metrics)
        return replace(result.outcome, files={name: str(path) for name, path in self.files.items()})

    def report(self, outcome: Outcome) -> None:
        """Write the HTML report, where one is asked for."""
        if "report" in self.files and self.is_first:
            data = self.document.get("data") or outcome.config.get("data", "")
            write_page(outcome, self.files["report"], str(data))

    def show(self, outcome: Outcome) -> None:
        """Show the table, the contracts and the verdict."""
        from graphsurgery.reports.tables import OutcomeTable

        self.screen.show(OutcomeTable(outcome))
        self.screen.checks(outcome.checks)
        if outcome.verdict:
            self.screen.line("verdict", outcome.verdict)

    def finish(self, outcome: Outcome, *following: str | Path) -> None:
        """Name the files, and the next command: by default the export of the network."""
        for name, path in outcome.files.items():
            self.screen.line("wrote", f"{path} ({name})")
        self.screen.finish({**self.document, "outcome": outcome.as_dict()}, *(following or self.export()))

    def export(self, *options: str) -> tuple[str | Path, ...]:
        """The command that exports the network."""
        network = self.files["network"]
        return "export", network, *options, "-o", network.with_suffix(".onnx")

    def end(self, result: Result[Outcome], *following: str | Path, write: Callable[..., object] | None = None) -> None:
        """Save the network, write the report, and show everything."""
        outcome = self.saved(result, write)
        self.report(outcome)
        self.show(outcome)
        self.finish(outcome, *following)


def write_page(outcome: Outcome, path: Path, data: str) -> None:
    """Write the HTML report, which also says by what command, on what data, when and where it was made."""
    from graphsurgery.reports.circumstances import circumstances
    from graphsurgery.reports.html import write_report

    write_report(outcome, path, circumstances(TOKENS.get(), data))


def show_sizes(screen: Screen, networks: Iterable[tuple[str, ModelGraph]], heading: str = "network") -> None:
    """A table of what networks weigh and cost."""
    from graphsurgery.cli.output import columns, count
    from graphsurgery.surgery.channels.cost import cost

    table = columns(heading, "parameters", "MACs", right=["parameters", "MACs"])
    for name, graph in networks:
        size = cost(graph)
        table.add_row(name, count(size.parameters), count(size.macs))
    screen.show(table)

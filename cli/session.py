"""A command that trains: what it saves as soon as it is there, and what it shows and writes in the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.graph import ModelGraph
    from graphsurgery.recipes.outcome import Outcome, Result


class Session:
    """The files of a command that trains, and what it says of them.

    Args:
        screen: where it says it.
        document: what was asked for; it stands in the network's file and in the JSON.
        network: where the network goes.
        controls: what follows when the network is there, such as `the controls`; empty where nothing does.
        others: further files, by what they are; `report` is written here.
    """

    def __init__(
        self,
        screen: Screen,
        document: dict[str, Any],
        network: Path,
        *,
        controls: str = "",
        **others: Path | None,
    ) -> None:
        self.screen, self.document, self.network, self.controls = screen, document, network, controls
        self.files = {"network": network, **{name: path for name, path in others.items() if path is not None}}

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        from graphsurgery.training.devices import process_rank

        return process_rank()[0] == 0

    def keep(self, graph: ModelGraph) -> None:
        """Save a network before anything else is done."""
        from graphsurgery.checkpoint.files import save

        if self.is_first:
            save(graph, self.network, **self.document)
            follows = f", {self.controls} follow{'' if self.controls.endswith('s') else 's'}" if self.controls else ""
            self.screen.line("saved", f"{self.network}{follows}")

    def saved(self, result: Result) -> Outcome:
        """Save the network with its metrics; the outcome that names the files."""
        from graphsurgery.checkpoint.files import save

        outcome = self.with_files(result.outcome)
        if self.is_first:
            save(result.graph, self.network, **self.document, metrics=[asdict(row) for row in outcome.rows])
        return outcome

    def with_files(self, outcome: Outcome) -> Outcome:
        """The outcome that names the files."""
        return replace(outcome, files={name: str(path) for name, path in self.files.items()})

    def report(self, outcome: Outcome) -> None:
        """Write the HTML report, where one is asked for."""
        from graphsurgery.reports.html import write_report

        if "report" in self.files and self.is_first:
            write_report(outcome, self.files["report"])

    def show(self, outcome: Outcome) -> None:
        """Show the table, the contracts and the verdict."""
        from graphsurgery.reports.tables import OutcomeTable

        self.screen.show(OutcomeTable(outcome))
        self.screen.checks(outcome.checks)
        if outcome.verdict:
            self.screen.line("verdict", outcome.verdict)

    def finish(self, outcome: Outcome, *following: str | Path) -> None:
        """Name the files, and the next command."""
        for name, path in outcome.files.items():
            self.screen.line("wrote", f"{path} ({name})")
        self.screen.finish({**self.document, "outcome": outcome.as_dict()}, *following)


def show_sizes(screen: Screen, networks: Iterable[tuple[str, ModelGraph]], heading: str = "network") -> None:
    """A table of what networks weigh and cost."""
    from graphsurgery.cli.output import columns, count
    from graphsurgery.surgery.channels.cost import cost

    table = columns(heading, "parameters", "MACs", right=["parameters", "MACs"])
    for name, graph in networks:
        size = cost(graph)
        table.add_row(name, count(size.parameters), count(size.macs))
    screen.show(table)

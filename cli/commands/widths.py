"""`graphsurgery widths`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Dataset, Model
from graphsurgery.cli.options import SHOWN, WRITING, Seed, Shown, Writing, open_data
from graphsurgery.cli.session import write_page
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.recipes.slimming.slimmable import Statistics
    from graphsurgery.training.data.dataset import Data


def widths(
    model: Model,
    /,
    *,
    data: Dataset,
    at: Annotated[tuple[float, ...], Parameter(negative="", consume_multiple=True)] = (),
    search: str | None = None,
    latency: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    plot: Path | None = None,
    report: Path | None = None,
    seed: Seed = 0,
    writing: Writing = WRITING,
    shown: Shown = SHOWN,
) -> None:
    """What a slimmable network does at several widths; statistics that were not known are kept in its file.

    Parameters
    ----------
    model
        What `graphsurgery slim` wrote.
    data
        What it was trained on.
    at
        The widths; by default 0.25, 0.5, 0.75 and 1, or those that have BatchNorms of their own.
    search
        Instead, remove channels where it hurts least until a target is met: macs=0.3x, params=1M.
    latency
        Also time each width in ONNX Runtime.
    plot
        Also draw accuracy against width, MACs, parameters and latency: a file.svg, .png or .pdf.
    report
        Also write an HTML report.
    """
    writing.allow(plot=plot, report=report, reads=[model, data])
    if search is not None and (at or latency or plot or report):
        raise SurgeryError("widths: --search stands alone; leave out --at, --latency, --plot and --report")
    from graphsurgery.cli.output import Screen
    from graphsurgery.recipes.slimming.slimmable import load_slimmable, save_slimmable

    screen = Screen(shown)
    statistics, metadata = load_slimmable(model)
    examples = open_data(data, model, seed=seed)
    known = len(statistics.known)
    if search is not None:
        following, document = _searched(screen, statistics, examples, search, seed)
    else:
        files = {"plot": plot, "report": report}
        following, document = _measured(screen, statistics, examples, at, files, latency=latency)
    if len(statistics.known) > known:
        save_slimmable(statistics, Path(model), **metadata)
        screen.line("kept", f"the statistics of {len(statistics.known) - known} more configurations in {model}")
    document = {"model": model, "data": data, **document}
    screen.finish(document, "export", model, "--width", following, "-o", Path(model).with_suffix(".onnx"))


def _searched(screen: Screen, statistics: Statistics, data: Data, target: str, seed: int) -> tuple[str, dict[str, Any]]:
    """Search, and show the way to the target; the configuration at its end, and what is known."""
    from dataclasses import asdict

    from graphsurgery.cli.output import columns, count
    from graphsurgery.recipes.slimming.width_choice import search
    from graphsurgery.surgery.channels.slimming import key_of
    from graphsurgery.surgery.channels.targets import parse_target

    path = search(statistics.slimmable, data, parse_target(target), seed=seed)
    table = columns("channels", "cost", "loss", right=["cost", "loss"])
    for found in path:
        table.add_row(" ".join(map(str, found.sizes.values())), count(found.cost), f"{-found.score:.4f}")
    screen.show(table)
    statistics.network(dict(path[-1].sizes), data)
    return key_of(path[-1].sizes), {"frontier": [asdict(found) for found in path]}


def _measured(
    screen: Screen,
    statistics: Statistics,
    data: Data,
    at: tuple[float, ...],
    files: Mapping[str, Path | None],
    *,
    latency: bool,
) -> tuple[str, dict[str, Any]]:
    """Measure and show these widths, and draw them; the narrowest, and what is known."""
    from graphsurgery.recipes.slimming.slimmable import measure_widths
    from graphsurgery.recipes.slimming.width_choice import with_latencies
    from graphsurgery.reports.tables import OutcomeTable
    from graphsurgery.reports.widths import draw_widths

    outcome = measure_widths(statistics, data, at)
    if latency:
        outcome = with_latencies(statistics.slimmable, outcome)
    screen.show(OutcomeTable(outcome))
    for name, write in (("plot", draw_widths), ("report", partial(write_page, data=data.name))):
        if (file := files[name]) is not None:
            write(outcome, file)
            screen.line("wrote", str(file))
    return f"{outcome.widths[-1]:g}", {"outcome": outcome.as_dict()}

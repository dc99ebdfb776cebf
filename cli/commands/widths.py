"""`graphsurgery widths`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from graphsurgery.cli.options import SHOWN, WRITING, Seed, Shown, Writing, open_data
from graphsurgery.errors import SurgeryError


def widths(
    model: str,
    /,
    *,
    data: str,
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
    from dataclasses import asdict, replace

    from graphsurgery.cli.output import Screen, columns, count
    from graphsurgery.recipes.slimming.slimmable import load_slimmable, measure_widths, save_slimmable
    from graphsurgery.recipes.slimming.width_choice import latencies
    from graphsurgery.recipes.slimming.width_choice import search as find
    from graphsurgery.reports.html import write_report
    from graphsurgery.reports.tables import OutcomeTable
    from graphsurgery.reports.widths import draw_widths
    from graphsurgery.surgery.channels.slimming import key_of
    from graphsurgery.surgery.channels.targets import parse_target

    screen = Screen(shown)
    statistics, metadata = load_slimmable(model)
    examples = open_data(data, model, seed=seed)
    document: dict[str, Any] = {"model": model, "data": data}
    known = len(statistics.known)
    if search is not None:
        path = find(statistics.slimmable, examples, parse_target(search), seed=seed)
        table = columns("channels", "cost", "loss", right=["cost", "loss"])
        for found in path:
            table.add_row(" ".join(map(str, found.sizes.values())), count(found.cost), f"{-found.score:.4f}")
        screen.show(table)
        document["frontier"] = [asdict(found) for found in path]
        statistics.network(dict(path[-1].sizes), examples)
        following = key_of(path[-1].sizes)
    else:
        outcome = measure_widths(statistics, examples, at)
        if latency:
            timed = latencies(statistics.slimmable, outcome.widths)
            rows = zip(outcome.widths, outcome.rows, strict=True)
            outcome = replace(outcome, rows=tuple(replace(row, latency=timed[width]) for width, row in rows))
        screen.show(OutcomeTable(outcome))
        document["outcome"] = outcome.as_dict()
        following = f"{outcome.widths[-1]:g}"
        for file, write in ((plot, draw_widths), (report, write_report)):
            if file is not None:
                write(outcome, file)
                screen.line("wrote", str(file))
    if len(statistics.known) > known:
        save_slimmable(statistics, Path(model), **metadata)
        screen.line("kept", f"the statistics of {len(statistics.known) - known} more configurations in {model}")
    screen.finish(document, "export", model, "--width", following, "-o", Path(model).with_suffix(".onnx"))

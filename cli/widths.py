"""`graphsurgery widths`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from graphsurgery.cli.options import SHOWN, Seed, Shown, writable


def widths(
    model: str,
    /,
    *,
    data: str,
    at: Annotated[tuple[float, ...], Parameter(negative="", consume_multiple=True)] = (0.25, 0.5, 0.75, 1.0),
    search: str | None = None,
    latency: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    report: Path | None = None,
    seed: Seed = 0,
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
        The widths.
    search
        Instead, remove channels where it hurts least until a target is met: macs=0.3x, params=1M.
    latency
        Also time each width in ONNX Runtime.
    report
        Also write an HTML report.
    """
    writable(report)
    from dataclasses import asdict, replace

    from graphsurgery.cli.output import Output as Screen
    from graphsurgery.cli.output import columns, count
    from graphsurgery.recipes.slimmable import load_slimmable, measure_widths, save_slimmable
    from graphsurgery.recipes.slimmable import search as find
    from graphsurgery.reports.html import write_report
    from graphsurgery.reports.tables import outcome_table
    from graphsurgery.targets import parse_target
    from graphsurgery.training.data import load_data

    screen = Screen(shown)
    statistics, metadata = load_slimmable(model)
    examples = load_data(data, seed=seed)
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
    else:
        outcome = measure_widths(statistics, examples, at)
        if latency:
            timed = _timed(statistics, at)
            outcome = replace(outcome, rows=tuple(replace(row, latency=timed[row.name]) for row in outcome.rows))
        screen.show(outcome_table(outcome))
        document["outcome"] = outcome.as_dict()
        if report is not None:
            write_report(outcome, report)
            screen.line("wrote", str(report))
    if len(statistics.known) > known:
        rest = {name: value for name, value in metadata.items() if name not in ("slim", "statistics")}
        save_slimmable(statistics, Path(model), **rest)
        screen.line("kept", f"the statistics of {len(statistics.known) - known} more configurations in {model}")
    screen.finish(document, "export", model, "--width", "0.5", "-o", Path(model).with_suffix(".onnx"))


def _timed(statistics: Any, at: tuple[float, ...]) -> dict[str, float]:
    """The latency of every width in ONNX Runtime, timed in turn."""
    import tempfile

    from graphsurgery.onnx.exporting import export_onnx
    from graphsurgery.onnx.latency import measure_latency

    with tempfile.TemporaryDirectory() as folder:
        files = {f"width {width:g}": Path(folder) / f"{number}.onnx" for number, width in enumerate(at)}
        for width, file in zip(at, files.values(), strict=True):
            export_onnx(statistics.network(width), file)
        return {name: found.median for name, found in measure_latency(files).items()}

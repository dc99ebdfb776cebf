"""What a slimmable network does at its widths, drawn: for the HTML report and as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphsurgery.checkpoint.atomic import atomic_write
from graphsurgery.errors import SurgeryError
from graphsurgery.reports.cells import SHARES
from graphsurgery.reports.drawing import drawing, light, style
from graphsurgery.reports.plots import in_percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graphsurgery.recipes.outcome import Outcome

ENDINGS = (".svg", ".png", ".pdf")


def width_figure(outcome: Outcome) -> str:
    """The figure as inline SVG."""
    with drawing("widths", height=2.6) as drawn:
        _draw(drawn.figure, outcome)
    return drawn.svg


def draw_widths(outcome: Outcome, path: Path) -> None:
    """Write the figure; equal outcomes give equal SVGs.

    Raises:
        SurgeryError: the file has another ending than those of `ENDINGS`, or cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    check_ending(path)
    with matplotlib.rc_context(style("widths")), matplotlib.rc_context({"figure.facecolor": light("paper")}):
        figure = Figure(figsize=(9.2, 2.8), layout="constrained")
        _draw(figure, outcome)
        kind = path.suffix[1:].lower()
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)


def check_ending(path: Path) -> None:
    """Refuse a plot that could not be drawn, before any work is done for it."""
    if path.suffix.lower() not in ENDINGS:
        raise SurgeryError(f"{path}: is no picture; end the name in {', '.join(ENDINGS)}")


def _draw(figure: Figure, outcome: Outcome) -> None:
    """The test metric against width, MACs, parameters, and latency where it was measured; a panel for each."""
    rows = sorted(zip(outcome.widths, outcome.rows, strict=True), key=lambda pair: pair[0])
    scores = [row.test[outcome.metric] for _, row in rows]
    costs: dict[str, list[float]] = {
        "width": [width for width, _ in rows],
        "million MACs": [(row.macs or 0) / 1e6 for _, row in rows],
        "thousand parameters": [(row.parameters or 0) / 1e3 for _, row in rows],
    }
    if all(row.latency is not None for _, row in rows):
        costs["latency, ms"] = [row.latency or 0.0 for _, row in rows]
    panels = figure.subplots(1, len(costs), sharey=True)
    for axes, (name, values) in zip(panels, costs.items(), strict=True):
        # A wider network may be the quicker one; each axis has its own order.
        points = sorted(zip(values, scores, strict=True))
        axes.plot(
            *zip(*points, strict=True), color=light("hue-1"), linewidth=1.6, marker="o", markersize=4, clip_on=False
        )
        axes.set_xlabel(name)
        axes.set_xlim(0, 1.06 * max(values) or 1)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panels[0].set_ylabel(f"test {outcome.metric}")
    if outcome.metric in SHARES:
        in_percent(panels[0])

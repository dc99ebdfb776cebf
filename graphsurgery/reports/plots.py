"""The report's figures: training curves, how the gates closed, where the channels came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphsurgery.reports.cells import SHARES, metric_text
from graphsurgery.reports.drawing import drawing, hue_role, light, shortened, with_titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from graphsurgery.recipes.outcome import GateEpoch
    from graphsurgery.training.loop.run import EpochRecord

PANEL = 3.0
"""Inches; the page puts as many panels side by side as it has room for."""


def curve_figures(curves: Sequence[EpochRecord], metric: str) -> list[str]:
    """A figure for each stage, training loss above, validation metric below; all share the scales."""
    stages: dict[str, list[EpochRecord]] = {}
    for record in curves:
        stages.setdefault(record.stage, []).append(record)
    scales = [scale_of([value for record in curves for value in record.train.values()], logarithmic=True)]
    if any(metric in record.validation for record in curves):
        scales.append(scale_of(late(list(stages.values()), metric), logarithmic=metric not in SHARES))
    return [stage_figure(f"curves-{i}", stage, stages[stage], metric, scales) for i, stage in enumerate(stages)]


def late(stages: Sequence[Sequence[EpochRecord]], metric: str) -> list[float]:
    """What stages reach in their second halves: their differences would not be seen beside how they begin."""
    found = []
    for records in stages:
        values = [record.validation[metric] for record in records if metric in record.validation]
        found += values[len(values) // 2 :]
    return found


def stage_figure(name: str, stage: str, records: Sequence[EpochRecord], metric: str, scales: Sequence[Scale]) -> str:
    """One stage; its first epochs may lie below the scale of the metric."""
    with drawing(name, height=1.7 * len(scales) + 0.2, width=PANEL) as drawn:
        panels = drawn.figure.subplots(len(scales), 1, squeeze=False, sharex=True)[:, 0]
        for axes, scale in zip(panels, scales, strict=True):
            scale.apply(axes)
        panels[0].set_title(shortened(stage, 24), loc="left", fontweight="bold")
        panels[-1].set_xlabel("epoch")
        panels[-1].set_xlim(0, 1.03 * max(1, *(record.epoch for record in records)))
        whole_epochs(panels[-1])
        draw_losses(panels[0], records)
        if len(panels) > 1:
            points = [(r.epoch, r.validation[metric]) for r in records if metric in r.validation]
            line(panels[1], points, light("hue-3"))
            if points:
                say_last(panels[1], metric_text(metric, points[-1][1]))
            if metric in SHARES:
                in_percent(panels[1])
        labels = ("train loss", f"validation {shortened(metric, 20)}")
        for axes, label in zip(panels, labels, strict=False):
            axes.set_ylabel(label)
        drawn.figure.align_ylabels()
    return drawn.svg


def draw_losses(axes: Axes, records: Sequence[EpochRecord]) -> None:
    """The whole loss, and what it is the sum of."""
    losses = list(dict.fromkeys(loss for record in records for loss in record.train))
    losses.sort(key=lambda loss: loss != "total")
    for loss, style in zip(losses, ("-", ":", "--", "-."), strict=False):
        main = style == "-"
        points = [(r.epoch, r.train[loss]) for r in records if loss in r.train]
        line(axes, points, light("hue-1" if main else "muted"), style=style, label=shortened(loss, 20))
        if main:
            say_last(axes, f"{points[-1][1]:#.3g}")
    if len(losses) > 1:
        axes.legend(
            loc="best", fontsize=8, frameon=True, facecolor=light("paper"), edgecolor=light("paper"), framealpha=0.85
        )


def gate_figure(gates: Sequence[GateEpoch]) -> str:
    """Expected open share and its budget over the epochs, thin lines per space, and the strength on the right."""
    with drawing("gates", height=3.3) as drawn:
        axes = drawn.figure.subplots()
        titles = {}
        for i, space in enumerate(dict.fromkeys(space for gate in gates for space in gate.spaces)):
            points = [(gate.epoch, gate.spaces[space]) for gate in gates if space in gate.spaces]
            titles[f"space-{i}"] = f"{space}: {100 * points[-1][1]:.1f} % open"
            label = "each space" if i == 0 else None
            line(axes, points, light("muted"), width=0.7, alpha=0.55, label=label, gid=f"space-{i}")
        budget = [(gate.epoch, gate.budget) for gate in gates]
        line(axes, budget, light("ink"), style=(0, (5, 3)), width=1.1, label="budget")
        line(axes, [(gate.epoch, gate.expected) for gate in gates], light("hue-1"), width=2.4, label="expected open")
        axes.set_ylim(0, 1.03)
        axes.set_xlim(left=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel("open share of the channels")
        whole_epochs(axes)
        in_percent(axes)
        right = axes.twinx()
        right.grid(visible=False)
        strength = [(gate.epoch, gate.strength) for gate in gates]
        line(right, strength, light("hue-2"), width=1.5, style="-.", label="strength λ")
        right.locator_params(axis="y", nbins=5)
        plain_numbers(right)
        right.set_ylim(bottom=min(0.0, *(gate.strength for gate in gates)))
        right.set_ylabel("strength λ", color=light("hue-2"))
        right.tick_params(axis="y", colors=light("hue-2"))
        handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        drawn.figure.legend(handles=handles, loc="outside upper left", ncols=4)
    return with_titles(drawn.svg, "gates", titles)


def origin_figure(origins: Mapping[str, tuple[int, ...]]) -> str:
    """One bar per space, as long as the others, divided by the parents that its channels came from."""
    spaces = list(origins)
    with drawing("origins", height=0.3 + 0.25 * len(spaces)) as drawn:
        axes = drawn.figure.subplots()
        for y, space in enumerate(spaces):
            counts = origins[space]
            total = sum(counts) or 1
            left = 0.0
            for parent, count in enumerate(counts):
                share = count / total
                axes.barh(y, share, left=left, height=0.7, color=light(hue_role(parent)), edgecolor=light("paper"))
                if share > 0.012 * (len(str(count)) + 1):
                    axes.text(left + share / 2, y, str(count), ha="center", va="center_baseline", color=light("on-hue"))
                left += share
            axes.text(1.01, y, f"{sum(counts):,}", va="center_baseline", color=light("muted"))
        axes.set_yticks(range(len(spaces)), [shortened(space, 40) for space in spaces])
        axes.set_ylim(len(spaces) - 0.5, -0.5)
        axes.set_xlim(0, 1.06)
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return drawn.svg


class Scale:
    """The vertical scale that the panels of a row share."""

    def __init__(self, low: float, high: float, *, logarithmic: bool) -> None:
        self.low, self.high, self.logarithmic = low, high, logarithmic

    def apply(self, axes: Axes) -> None:
        """Set the scale of a panel, and so of those that share it."""
        if self.logarithmic:
            axes.set_yscale("log")
            axes.set_ylim(self.low / 1.3, self.high * 1.3)
            round_ticks(axes.yaxis, self.high / self.low)
        else:
            margin = 0.06 * (self.high - self.low) or 0.1 * abs(self.high) or 1.0
            axes.set_ylim(self.low - margin, self.high + margin)
        plain_numbers(axes)


def scale_of(values: Sequence[float], *, logarithmic: bool) -> Scale:
    """A scale that shows all finite values; logarithmic where that is asked for and they are positive."""
    finite = [value for value in values if abs(value) < float("inf")] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    return Scale(low, high, logarithmic=logarithmic and 0 < low < high)


def line(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    color: str,
    *,
    style: Any = "-",
    width: float = 1.6,
    **options: Any,
) -> None:
    """Draw a curve; one that has a single point becomes a dot."""
    marker = "o" if len(points) == 1 else ""
    xs, ys = zip(*points, strict=True) if points else ((), ())
    axes.plot(xs, ys, color=color, linestyle=style, linewidth=width, marker=marker, markersize=4, **options)


def say_last(axes: Axes, value: str) -> None:
    """Write above a panel what its curve ended at: on a scale shared with other stages it may look flat."""
    axes.set_title(f"last {value}", loc="right", fontsize=8, color=light("muted"), fontweight="normal")


def plain_numbers(axes: Axes) -> None:
    """Label the vertical axis with whole numbers, decimals or `1e-05`, without a factor apart."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def round_ticks(axis: Axis, span: float) -> None:
    """Ticks of a logarithmic axis: powers of ten, or where it spans few of them also twice and five times these."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 300 else (1,)))
    axis.set_minor_formatter("")


def in_percent(axes: Axes) -> None:
    """Label the vertical axis, a share from 0 to 1, in percent."""
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")


def whole_epochs(axes: Axes) -> None:
    """Put ticks at whole numbers of epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))

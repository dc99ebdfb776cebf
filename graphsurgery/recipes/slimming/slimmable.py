"""Slimmable: train one set of weights for every width, and deliver any of them.

Source: Yu & Huang, "Universally slimmable networks and improved training techniques", ICCV 2019, arXiv:1903.05134.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graphsurgery.checkpoint.files import load, read_metadata, save
from graphsurgery.errors import CheckpointError, SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.passes.compress import compress
from graphsurgery.passes.slim import slim
from graphsurgery.recipes.contracts.edit_checks import unchanged
from graphsurgery.recipes.experiment import Experiment
from graphsurgery.recipes.outcome import Check, Outcome, Result
from graphsurgery.recipes.slimming.plan import SlimPlan
from graphsurgery.surgery.channels.slimming import Slimmable, Width, batch_norms, key_of, pack_norms, unpack_norms
from graphsurgery.training.data.dataset import Data
from graphsurgery.training.data.loading import check_fits, recorded
from graphsurgery.training.loop.evaluation import recalibrate
from graphsurgery.training.loop.progress import Reporter
from graphsurgery.training.loop.run import Run
from graphsurgery.training.objectives.sandwich import Sandwich

SHOWN = (0.25, 0.5, 0.75, 1.0)
_SETTINGS = ("min_width", "round_to", "switchable")
_OLD_SETTINGS = {"minimum": "min_width", "divisor": "round_to"}
"""What files were written with before."""


def train_slimmable(
    graph: ModelGraph, data: Data, plan: SlimPlan, *, run: Run | None = None, reporter: Reporter | None = None
) -> Result[Slimmed]:
    """Train a network for every width.

    Args:
        graph: a network, trained or not; it is not modified.
        data: what it learns.
        plan: how.
        run: folder for metrics and states; an interrupted run goes on from it.
        reporter: told about progress.

    Returns:
        The whole network, and what it does at the usual widths, with the statistics that each of them has.

    Raises:
        SurgeryError: the data do not fit, nothing can be slimmed, or training fails.
        CheckFailedError: channels in another order change the outputs, or a narrow network is not the trained one cut
            to its first channels.
    """
    check_fits(data, graph.module)
    sorted_first = slim(graph) if plan.sort else slim(graph, importance="random", seed=plan.training.seed)
    books = Experiment(data, device=plan.training.device, run=run, reporter=reporter)
    books.require(unchanged("channels in order = original", graph, sorted_first, plan.training.seed))
    record = {"pass": "slimmable", **recorded(data), "plan": asdict(plan)}
    whole = replace(sorted_first, lineage=(*sorted_first.lineage, record))
    slimmable = Slimmable(whole, min_width=plan.min_width, round_to=plan.round_to, switchable=plan.switchable)
    objective = Sandwich(
        slimmable,
        books.objective,
        widths=plan.widths,
        rule=plan.rule,
        distil=plan.distil,
        warmup=plan.warmup,
    )
    books.fit(slimmable.trained_module(), plan.training, "slim", objective=objective)
    books.require(check_narrow(slimmable, plan.training.seed))
    statistics = Statistics(slimmable)
    widths = _measure(books, statistics, usual_widths(slimmable))
    found = books.findings(f"every width on {data.name}", _verdict(widths), asdict(plan))
    return Result(slimmable.graph, Slimmed(**found, widths=widths, statistics=statistics))


def check_narrow(slimmable: Slimmable, seed: int = 0) -> Check | None:
    """The contract of the narrowest width; none where widths have BatchNorms of their own, which no cut has."""
    if slimmable.switchable:
        return None
    sizes = slimmable.sizes(slimmable.min_width)
    keep = {name: list(range(size)) for name, size in sizes.items() if size < slimmable.spaces[name].size}
    cut = compress(slimmable.graph, keep) if keep else slimmable.graph
    name = f"slim at width {slimmable.min_width:g} = compressed to the first channels"
    return unchanged(name, cut, slimmable.extract(slimmable.min_width), seed)


class Statistics:
    """The BatchNorm statistics of widths, found on demand and kept by configuration.

    Args:
        slimmable: the network.
        known: those that are known, by `key_of` their sizes.
    """

    def __init__(self, slimmable: Slimmable, known: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self.slimmable = slimmable
        self.known: dict[str, Mapping[str, str]] = dict(known or {})

    def network(self, width: Width, data: Data | None = None, *, images: int = 1000, seed: int = 0) -> ModelGraph:
        """The network at a width, with weights and statistics of its own.

        Args:
            width: a share of every space, or sizes of single ones.
            data: its training examples give statistics that are not known.
            images: how many of them.
            seed: draws them.

        Raises:
            SurgeryError: the statistics are unknown and there are no data.
        """
        graph = self.slimmable.extract(width)
        if self.slimmable.switchable or not batch_norms(graph.module):
            return graph
        key = key_of(self.slimmable.sizes(width))
        if key in self.known:
            unpack_norms(graph.module, self.known[key])
            return graph
        if data is None:
            shown = f"{width:g}" if isinstance(width, int | float) else key
            raise SurgeryError(f"slim: the statistics of width {shown} are not known; give --data to find them")
        recalibrate(graph.module, data.train, images=images, seed=seed)
        self.known[key] = pack_norms(graph.module)
        return graph


@dataclass(frozen=True, kw_only=True)
class Slimmed(Outcome):
    """What was found out about a slimmable network.

    Attributes:
        statistics: the network at any width, with the statistics of those that were measured.
    """

    statistics: Statistics


def save_slimmable(statistics: Statistics, path: Path, **metadata: Any) -> None:
    """Write a slimmable network with all known statistics, and the BatchNorms that widths have of their own."""
    slimmable = statistics.slimmable
    settings = {name: getattr(slimmable, name) for name in _SETTINGS}
    norms = {key_of(slimmable.sizes(w)): pack_norms(slimmable.at(w).module, affine=True) for w in slimmable.switchable}
    save(slimmable.graph, path, **{**metadata, "slim": settings, "statistics": statistics.known, "norms": norms})


def load_slimmable(path: Path | str) -> tuple[Statistics, dict[str, Any]]:
    """Open what `save_slimmable` wrote, and what else was stored with it.

    Raises:
        SurgeryError: the file is no slimmable network, or the BatchNorms of a width do not fit it.
        CheckpointError: its settings or statistics are damaged.
    """
    metadata = read_metadata(path)
    settings = metadata.pop("slim", None)
    if not isinstance(settings, dict):
        raise SurgeryError(f"{path}: is no slimmable network; make one with graphsurgery slim")
    settings = {_OLD_SETTINGS.get(name, name): value for name, value in settings.items()}
    norms, statistics = metadata.pop("norms", {}), metadata.pop("statistics", None) or {}
    graph = load(path)
    try:
        slimmable = Slimmable(graph, **{name: settings[name] for name in _SETTINGS if name in settings})
        for width in slimmable.switchable:
            unpack_norms(slimmable.at(width).module, norms.get(key_of(slimmable.sizes(width)), {}), affine=True)
        _check_statistics(statistics)
    except SurgeryError as cause:
        raise CheckpointError(f"{path}: {cause}") from cause
    except Exception as cause:  # the settings may be anything, so anything may be wrong with them
        raise CheckpointError(
            f"{path}: its settings as a slimmable network are damaged ({type(cause).__name__}: {one_line(cause)}); "
            "take another copy of it"
        ) from cause
    return Statistics(slimmable, statistics), metadata


def _check_statistics(statistics: Mapping[str, Any]) -> None:
    """Packed norms by configuration; whether they fit is seen where they are unpacked."""
    for key, packed in statistics.items():
        if not isinstance(packed, Mapping) or not all(isinstance(text, str) for text in packed.values()):
            raise SurgeryError(f"slim: the stored statistics of {key} are damaged")


def usual_widths(slimmable: Slimmable) -> tuple[float, ...]:
    """What is shown where nothing else is asked for: the switchable widths, or those of `SHOWN` that are in range."""
    return slimmable.switchable or tuple(sorted({max(width, slimmable.min_width) for width in SHOWN}))


def measure_widths(statistics: Statistics, data: Data, widths: Sequence[float] = ()) -> Outcome:
    """What the network does at several widths, or the usual ones, each with statistics of its own."""
    books = Experiment(data)
    measured = _measure(books, statistics, widths or usual_widths(statistics.slimmable))
    return books.outcome(f"every width on {data.name}", _verdict(measured), {}, widths=measured)


def _measure(books: Experiment, statistics: Statistics, widths: Sequence[float]) -> tuple[float, ...]:
    """A row for each width, the widest first; the widths in that order."""
    widths = tuple(sorted(widths, reverse=True))
    for width in widths:
        books.measure(f"width {width:g}", statistics.network(width, books.data))
    return widths


def _verdict(widths: Sequence[float]) -> str:
    return f"One set of weights at {len(widths)} widths, each with its own statistics."

"""`graphsurgery compress`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from graphsurgery.cli.options import (
    OPENING,
    SHOWN,
    DryRun,
    Opening,
    Output,
    RunFolder,
    Seed,
    Shown,
    without_dry_run,
)
from graphsurgery.cli.writing import write_network, writes_to
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from pathlib import Path

    from graphsurgery.cli.output import Output as Screen
    from graphsurgery.graph import ModelGraph
    from graphsurgery.recipes.shrink import Cut
    from graphsurgery.training.data import Data


@Parameter(name="*", group="Cutting")
@dataclass(frozen=True)
class Cutting:
    """What is cut, and which channels go."""

    keep: float | None = None
    """Share of the channels that stays in every space, above 0 and at most 1."""
    target: str | None = None
    """What the network may cost at most: params=0.5x, macs=300M, size=4MB or width=0.75. The widths are searched."""
    keep_space: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    """NAME=N for a number of channels of one space, NAME=0.25 for a share; may be given again, and prevails. Without
    --keep and --target the other spaces stay whole."""
    ranking: Literal["per-space", "global"] = "per-space"
    """For --target: every space keeps the same share, or the channels of all spaces compete."""
    min_width: int = 1
    """For --target: no space gets fewer channels."""
    max_cut: float = 0.9
    """For --target: no space loses a larger share."""
    within: Literal["groups", "same", "each", "best"] = "groups"
    """What goes where channels are in groups or heads: whole groups, the same channels of every group, others of each
    group, or whichever keeps the more important ones."""
    importance: str = "l2"
    """Which channels stay: l2, l1, bn, taylor (needs data), gate or random."""
    round_to: int = 1
    """Numbers of channels become multiples of this."""
    dead: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Remove the channels whose weights are all 0, as in a lottery ticket, and fold the constants that they give into
    what reads them. The outputs stay the same; nothing else is cut."""

    def plan(self, seed: int) -> Cut:
        """The plan of this cut."""
        from graphsurgery.recipes.shrink import Cut, parse_spaces
        from graphsurgery.targets import parse_target

        limits = {"ranking": self.ranking, "min_width": self.min_width, "max_cut": self.max_cut}
        if self.target is None and limits != {name: getattr(_CUTTING, name) for name in limits}:
            raise SurgeryError("compress: --ranking, --min-width and --max-cut say how a --target is met; give one")
        return Cut(
            keep=self.keep,
            target=None if self.target is None else parse_target(self.target, **limits),
            spaces=parse_spaces(self.keep_space),
            within=self.within,
            importance=self.importance,
            round_to=self.round_to,
            seed=seed,
        )


@Parameter(name="*", group="Fine-tuning")
@dataclass(frozen=True)
class Tuning:
    """How accuracy is brought back, where data are given."""

    epochs: int = 0
    """Fine-tune for so long, by the plan the network was trained with and a fresh optimizer."""
    lr: float | None = None
    """Learning rate of the fine-tuning; by default a tenth of the training's."""
    recover: Literal["labels", "mimic"] = "labels"
    """What is learnt: the labels, or what the network said before the cut, which needs none."""
    device: str = "auto"
    """Where to fine-tune: auto, cpu, cuda or any torch device."""

    def settings(self, seed: int) -> dict[str, Any]:
        """What changes in the plan the network was trained with."""
        chosen = {"epochs": self.epochs, "device": self.device, "seed": seed}
        return chosen if self.lr is None else {**chosen, "lr": self.lr}


_CUTTING = Cutting()
_TUNING = Tuning()


def compress(
    model: str,
    /,
    *,
    output: Output,
    data: str | None = None,
    cutting: Cutting = _CUTTING,
    tuning: Tuning = _TUNING,
    run: RunFolder = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    opening: Opening = OPENING,
    shown: Shown = SHOWN,
) -> None:
    """Remove channels; the result equals the network with the removed reads masked. With data, bring accuracy back.

    Parameters
    ----------
    model
        A checkpoint, a state_dict with --arch, an .onnx file, or a model spec. An .onnx file can be written as one:
        -o small.onnx.
    data
        What the network was trained on: measures every step, and recalibrates BatchNorm.
    """
    writes_to(output, model)
    from dataclasses import asdict

    from graphsurgery.cli.output import Output as Screen
    from graphsurgery.training.data import check_fits, load_data

    if tuning.epochs and data is None:
        raise SurgeryError(f"compress: {tuning.epochs} epochs of fine-tuning need data; give --data")
    screen = Screen(shown)
    if cutting.dead:
        if cutting != Cutting(dead=True) or tuning != _TUNING or data is not None:
            raise SurgeryError("compress: --dead changes no output and takes no other choice; run compress again after")
        _compress_dead(screen, opening.graph(model), model, output, dry_run)
        return
    plan = cutting.plan(seed)
    examples = load_data(data, seed=seed) if data else None
    graph = opening.graph(model, examples.input_shape if examples else None)
    if examples is not None:
        check_fits(examples, graph.module, name=model)
    document: dict[str, Any] = {"model": model, "cut": asdict(plan)}
    if dry_run:
        document |= _try(screen, graph, plan, examples)
        screen.line("dry run", f"would write {output}")
        screen.finish(document, *without_dry_run())
        return
    small, found = _cut(screen, graph, plan, examples, tuning, seed, run, model)
    document |= found
    write_network(screen, small, output, model, document)


def _compress_dead(screen: Screen, graph: ModelGraph, model: str, output: Path, dry_run: bool) -> None:
    """Remove dead channels, and show what the network is masked and what it is compressed."""
    from graphsurgery.cli.output import columns, count
    from graphsurgery.errors import CheckFailedError
    from graphsurgery.recipes.dead import without_dead

    small, report = without_dead(graph)
    numbers = ["parameters", "weights not 0", "MACs", "ONNX file", "latency (ms)"]
    table = columns("", *numbers, right=numbers)
    for name, found in (("masked", report.masked), ("compressed", report.compressed)):
        living = f"{count(found.living)} of {count(found.weights)}"
        size = f"{count(found.onnx_bytes)}B"
        table.add_row(name, count(found.parameters), living, count(found.macs), size, f"{found.latency:.3f}")
    screen.show(table)
    changed = {name: sizes for name, sizes in small.lineage[-1]["sizes"].items() if sizes[0] != sizes[1]}
    spaces = ", ".join(f"{name} {before} to {after}" for name, (before, after) in changed.items())
    screen.line("channels", spaces or "none is dead: every channel has a weight that is not 0")
    screen.checks([report.check])
    document = {"model": model, "dead": report.as_dict(), "sizes": small.lineage[-1]["sizes"]}
    if not report.check.holds:
        raise CheckFailedError("compress: without its dead channels the network gives something else; see above")
    if dry_run:
        screen.line("dry run", f"would write {output}")
        screen.finish(document, *without_dry_run())
        return
    write_network(screen, small, output, model, document)


def _try(screen: Screen, graph: ModelGraph, plan: Cut, examples: Data | None) -> dict[str, Any]:
    """Show what would be cut."""
    from graphsurgery.recipes.shrink import cut, removal

    small = cut(graph, plan, examples)
    _show_plan(screen, removal(small))
    return _show_costs(screen, graph, small)


def _cut(
    screen: Screen,
    graph: ModelGraph,
    plan: Cut,
    examples: Data | None,
    tuning: Tuning,
    seed: int,
    run: Path | None,
    model: str,
) -> tuple[ModelGraph, dict[str, Any]]:
    """Cut, with data recalibrate and fine-tune, and show what that gave."""
    from dataclasses import asdict

    from graphsurgery.recipes.shrink import cut, fine_tuning, shrink
    from graphsurgery.reports.tables import outcome_table
    from graphsurgery.training.run import Run

    if examples is None:
        small = cut(graph, plan)
        return small, _show_costs(screen, graph, small)
    training = fine_tuning(graph, **tuning.settings(seed))
    settings = {"command": "compress", "model": model, "cut": asdict(plan), "plan": asdict(training)}
    settings |= {} if tuning.recover == "labels" else {"recover": tuning.recover}
    folder = None if run is None else Run(run, config=settings)
    small, outcome = shrink(
        graph, plan, examples, training, recover=tuning.recover, run=folder, reporter=screen.reporter()
    )
    costs = _show_costs(screen, graph, small)
    screen.show(outcome_table(outcome))
    return small, {**costs, "outcome": outcome.as_dict()}


def _show_plan(screen: Screen, removed: Mapping[str, Any]) -> None:
    """Every space that was looked at: its channels before and after."""
    from graphsurgery.cli.output import columns

    words = {"each": "others in each group", "same": "the same in every group"}
    table = columns("space", "before", "after", "", right=["before", "after"])
    for name, (before, after) in removed["sizes"].items():
        note = words.get(removed["inside groups"].get(name), "")
        table.add_row(name, str(before), str(after), "whole" if before == after else note)
    screen.show(table)


def _show_costs(screen: Screen, graph: ModelGraph, small: ModelGraph) -> dict[str, Any]:
    """The costs before and after, and the target and what is reached of it."""
    from dataclasses import asdict

    from graphsurgery.cli.output import columns, count
    from graphsurgery.cost import cost
    from graphsurgery.recipes.shrink import removal
    from graphsurgery.targets import QUANTITIES

    before, after = cost(graph), cost(small)
    table = columns("", "parameters", "MACs", right=["parameters", "MACs"])
    table.add_row("before", count(before.parameters), count(before.macs))
    table.add_row("after", count(after.parameters), count(after.macs))
    table.add_row("ratio", f"{after.parameters / before.parameters:.3f}", f"{after.macs / max(1, before.macs):.3f}")
    screen.show(table)
    document = {"before": asdict(before), "after": asdict(after), "sizes": removal(small)["sizes"]}
    target = removal(small).get("target")
    if target is not None:
        unit, share = QUANTITIES[target["quantity"]], target["reached"] / max(1, target["before"])
        screen.line("target", f"{target['asked']}: {target['reached']:,} of {target['before']:,} {unit} ({share:.4g}x)")
        document |= {"target": target["asked"], "reached": target["reached"]}
    return document

"""What the commands that grow a network have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import MaybeModel
from graphsurgery.cli.editing import Editing, EditSession, data_of
from graphsurgery.cli.options import Opening, again
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.graph import ModelGraph
    from graphsurgery.recipes.grow import Growth
    from graphsurgery.recipes.outcome import Check

_MANY = Parameter(negative="", show_default=False)


@Parameter(name="*", group="Widening")
@dataclass(frozen=True)
class Widening:
    """How wide the network becomes."""

    by: str | None = None
    """Factor on the channels of every space, such as 1.5x."""
    to: Annotated[tuple[str, ...], _MANY] = ()
    """NAME=96 channels or NAME=1.5x for single spaces, with commas between them; prevails over --by."""
    like: MaybeModel = None
    """Instead of both, a model of the same topology that has the sizes: torchvision/wide_resnet50_2."""
    init: Literal["unequal", "equal", "equal+noise", "next", "random-pad"] = "unequal"
    """What new channels are: copies read by unequal or equal shares (both exact), these with noise, copies that read as
    the next layer, or fresh ones."""
    noise: float = 0.05
    """For equal+noise: as a share of the weights' deviation."""
    round_to: int = 1
    """Sizes that follow from a factor become multiples of this."""

    def options(self, opening: Opening, shape: tuple[int, ...] | None = None) -> dict[str, Any]:
        """What `Growth` takes of it; `shape` is that of the data, for a pattern that says none."""
        from dataclasses import replace

        from graphsurgery.recipes.grow import parse_factor, parse_sizes

        sizes = parse_sizes(self.to)
        if self.round_to != 1 and self.by is None and not any(isinstance(size, float) for size in sizes.values()):
            raise SurgeryError(
                "widen: --round-to is of sizes that follow from a factor, and none is given; leave it out"
            )
        if self.noise != Widening.noise and self.init != "equal+noise":
            raise SurgeryError(f"widen: --noise is for --init equal+noise, not for {self.init}; leave it out")
        return {
            "by": None if self.by is None else parse_factor(self.by),
            "to": sizes,
            "like": None if self.like is None else replace(opening, arch=None).graph(self.like, shape, to_train=True),
            "init": self.init,
            "noise": self.noise,
            "round_to": self.round_to,
        }


@Parameter(name="*", group="Deepening")
@dataclass(frozen=True)
class Deepening:
    """Where the network becomes deeper, and with what."""

    after: Annotated[tuple[str, ...], _MANY] = ()
    """Node, module or stage behind which layers come, such as layer2; may be given again. auto takes every place
    that is proposed; see them with --dry-run."""
    count: int = 1
    """How many at each place."""
    block: Literal["auto", "copy", "layer", "residual"] = "auto"
    """What comes in: a repeat of what is there, an identity layer, a residual pair, or whichever can be exact."""

    def options(self) -> dict[str, Any]:
        """What `Growth` takes of it."""
        return {"after": self.after, "count": self.count, "block": self.block}


WIDENING, DEEPENING = Widening(), Deepening()


def grow_file(
    model: str,
    output: Path,
    growth: Growth,
    editing: Editing,
    *,
    data: str | None = None,
    reads: Sequence[str | None] = (),
) -> None:
    """Open a network, grow it, prove that its outputs are the same, and save it."""
    session = EditSession.of(output, model, editing, reads=[data, *reads], growth=growth.as_dict())
    from graphsurgery.recipes.delivery.quantize import first_inputs
    from graphsurgery.recipes.grow import check, grown

    opening = editing.opening
    examples = opening.data(data, model, seed=growth.seed) if data else None
    graph = opening.fitting(model, examples)
    inputs = None
    if examples is not None and output.suffix == ".onnx":
        inputs = first_inputs(examples.train)
    if editing.dry_run and growth.after == ("auto",):
        show_places(session.screen, graph)
    new = grown(graph, growth, examples)
    session.document |= show_growth(session.screen, graph, new)
    _show_check(session, graph, new, growth, check(graph, new, growth))
    if editing.dry_run:
        session.would_write()
        return
    del graph  # the proof needs its memory
    session.write(new, "inspect", output, inputs=inputs)


def show_places(screen: Screen, graph: ModelGraph) -> None:
    """Where the network could become deeper."""
    from graphsurgery.cli.output import columns, count
    from graphsurgery.surgery.growth.places import places

    words = {"copy": "repeat what is there", "layer": "identity layer", "residual": "residual pair"}
    table = columns("after", "what", "parameters", right=["parameters"])
    for place in places(graph):
        table.add_row(place.name, words[place.kind], count(place.parameters))
    screen.show(table)


def show_growth(screen: Screen, before: ModelGraph, after: ModelGraph) -> dict[str, Any]:
    """The costs before and after, and what has grown."""
    from graphsurgery.cli.output import few

    document = screen.costs(before, after)
    for record in after.lineage[len(before.lineage) :]:
        if record["pass"] == "widen":
            document |= {"sizes": record["sizes"], "kept": record["kept"]}
            screen.line("wider", few([f"{name} {old} to {new}" for name, (old, new) in record["sizes"].items()]))
            for name, reason in record["kept"].items():
                screen.line("stays", f"{name}: {reason}", "yellow")
        if record["pass"] == "deepen":
            document["places"] = record["places"]
            screen.line("deeper", f"{record['count']} after each of {few(list(record['places']))}")
    return document


def _show_check(
    session: EditSession, before: ModelGraph, after: ModelGraph, growth: Growth, held: Check | None
) -> None:
    """The contract, or by how much an approximate init changes the outputs; into the document, too.

    Raises:
        CheckFailedError: the contract does not hold.
    """
    from graphsurgery.surgery.deviation import changed_by

    if held is not None:
        session.screen.require(held)
        session.document["deviation"] = held.measured
        return
    session.screen.line("note", f"{growth.init} is not exact", "yellow")
    session.show_moved(before, after, again("--data", data_of(before), command="grow"), seed=growth.seed)
    session.document["deviation"] = changed_by(before, after, growth.seed)

"""`graphsurgery factorize`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Model
from graphsurgery.cli.editing import EDITING, Editing, EditSession, check_size, data_of
from graphsurgery.cli.options import Output
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.graph import ModelGraph


@Parameter(name="*")
@dataclass(frozen=True)
class Factorizing:
    """Which layers, and how far."""

    layer: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    """Path of a layer; may be given again. By default all that become smaller."""
    rank: float | None = None
    """Channels between the two; up to 1 a share of the full rank."""
    energy: float | None = None
    """Share of the squared singular values that stays in each layer."""
    target: str | None = None
    """What the network may cost at most: params=0.5x, macs=300M or size=4MB."""
    shape: Literal["channel", "spatial"] = "channel"
    """Convolutions become one of 1x1 behind the kernel (channel), or one down and one along it (spatial)."""
    how: Literal["svd", "random"] = "svd"
    """The best approximation (svd), or random factors to be trained."""
    back: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Instead, multiply the factors to one layer again."""

    def check(self) -> None:
        """Refuse what does not go together."""
        if self.back and not (self.rank is None and self.energy is None and self.target is None):
            raise SurgeryError("factorize: --back multiplies factors; leave out --rank, --energy and --target")
        if self.rank is not None and self.rank > 1 and self.rank != int(self.rank):
            raise SurgeryError(f"factorize: --rank is {self.rank:g}; give whole channels, or a share of at most 1")

    def of(self, graph: ModelGraph, seed: int) -> ModelGraph:
        """The network with factors, or without."""
        from graphsurgery.passes import factorize as passes

        layers = list(self.layer) or None
        if self.back:
            return passes.unfactorize(graph, layers)
        rank = int(self.rank) if self.rank is not None and self.rank > 1 else self.rank
        options: dict[str, Any] = {"energy": self.energy, "target": self.target, "how": self.how, "shape": self.shape}
        return passes.factorize(graph, layers, rank=rank, seed=seed, **options)


_FACTORIZING = Factorizing()


def factorize(
    model: Model,
    /,
    *,
    output: Output,
    factorizing: Factorizing = _FACTORIZING,
    editing: Editing = EDITING,
) -> None:
    """Replace linear layers and convolutions by two with few channels between them.

    Parameters
    ----------
    model
        A checkpoint, an .onnx file, a state_dict (.pt or .safetensors) with --arch, or a model spec. An .onnx file
        can be written back as one: -o out.onnx.
    """
    session = EditSession.of(output, model, editing)
    from graphsurgery.recipes.contracts.edit_checks import unchanged
    from graphsurgery.surgery.deviation import changed_by

    screen, seed, back = session.screen, editing.seed, factorizing.back
    factorizing.check()
    graph = editing.opening.graph(model)
    check_size(graph, output, factorizing.target)
    new = factorizing.of(graph, seed)
    session.document["factorized"] = dict(new.lineage[-1])
    if editing.dry_run and not back:
        _show_ranks(screen, new.lineage[-1])
    session.document |= screen.costs(graph, new)
    if back:
        check = unchanged("multiplied back = with factors", graph, new, seed)
        screen.require(check)
        session.document["deviation"] = check.measured
    recovered = output.with_name(f"{output.stem}_recovered.pt")
    recover = ("mimic", "--teacher", model, "--student", output, "--data", data_of(graph), "-o", recovered)
    session.show_moved(graph, new, recover, seed=seed)
    if factorizing.how == "svd" and not back:
        session.document["deviation"] = changed_by(graph, new, seed)
    if editing.dry_run:
        session.would_write()
        return
    del graph  # the proof needs its memory
    session.write(new, "inspect", output)


def _show_ranks(screen: Screen, record: Mapping[str, Any]) -> None:
    """The rank of each layer, and which stay as they are, and why."""
    from graphsurgery.cli.output import columns

    table = columns("layer", "full rank", "rank", right=["full rank", "rank"])
    for path, (full, kept) in record["ranks"].items():
        table.add_row(path, str(full), str(kept))
    screen.show(table)
    for path, reason in record["skipped"].items():
        screen.line("skipped", f"{path}: {reason}", "yellow")

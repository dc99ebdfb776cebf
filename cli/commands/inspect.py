"""`graphsurgery inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from graphsurgery.cli.arguments.sources import Model
from graphsurgery.cli.editing import stored_in
from graphsurgery.cli.options import OPENING, SHOWN, Opening, Shown, small_file

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.graph import ModelGraph
    from graphsurgery.reports.sheet import Sheet
    from graphsurgery.surgery.channels.cost import Cost


def inspect(model: Model, /, *, opening: Opening = OPENING, shown: Shown = SHOWN) -> None:
    """Show the spaces of a network (the sets of channels that change together), what is frozen and why, and the cost.

    Parameters
    ----------
    model
        A checkpoint, an .onnx file, a state_dict (.pt or .safetensors) with --arch, or a model spec.
    """
    from graphsurgery.cli.output import Screen
    from graphsurgery.surgery.channels.cost import cost
    from graphsurgery.surgery.reasons import reasons

    screen = Screen(shown)
    graph = opening.graph(model)
    size, held = cost(graph), reasons(graph)
    screen.show(_spaces(graph))
    _show_kept(screen, graph, held)
    _show_cost(screen, graph, size)
    document = {"model": model, **_document(graph, held), "cost": asdict(size), "lineage": graph.lineage}
    screen.finish(document, "compress", model, *opening.tokens, "--keep", "0.5", "-o", small_file(model))


def _spaces(graph: ModelGraph) -> Sheet:
    """A row for each space."""
    from graphsurgery.cli.output import columns

    mixed = ["mixed by"] if any(space.mixed for space in graph.spaces) else []
    inner = [""] if any(not space.outer for space in graph.spaces) else []
    others = [*mixed, *inner]
    table = columns("space", "size", "written by", "read by", *others, right=["size"], marks=["space"], drop=others)
    for space in graph.spaces:
        kinds = sorted({where.partition(" at ")[0] for where in space.mixed})
        cells = [", ".join(kinds)] if mixed else []
        cells += ["" if space.outer else "inside another"] if inner else []
        table.add_row(space.name, str(space.size), space.writers, space.readers, *cells)
    return table


def _show_kept(screen: Screen, graph: ModelGraph, held: Mapping[tuple[str, int], str]) -> None:
    """What cannot change, and why; and what was traced as in evaluation."""
    from graphsurgery.cli.output import few, in_few_lines
    from graphsurgery.surgery.gates import why_nothing
    from graphsurgery.surgery.reasons import by_reason

    for space in graph.spaces:
        if space.positions:
            screen.line("kept", f"{space.name}: {space.positions}; to cut it, name it: --keep-space {space.name}=0.5")
    if not graph.frozen:
        screen.line("frozen", "only the network's inputs and outputs" if graph.spaces else why_nothing(graph))
    for frozen in graph.frozen:
        screen.line("frozen", f"{frozen.node}: {frozen.reason}")
    for line in in_few_lines(by_reason(held)):
        screen.line("held", line)
    for line in (line for record in graph.lineage for line in record.get("only as in evaluation", ())):
        screen.line("training", f"as in evaluation: {line}")
    for record in graph.lineage:
        if made := record.get("weights that were computed"):
            screen.line("training", f"{few(made)}: were computed from other weights, and are weights of their own here")


def _show_cost(screen: Screen, graph: ModelGraph, size: Cost) -> None:
    """The inputs, and what the network costs."""
    from graphsurgery.cli.output import count

    shapes = [["batch", *spec.shape[1:]] if spec.batched else list(spec.shape) for spec in graph.inputs]
    words = [f"{spec.name} {shape}".replace("'", "") for spec, shape in zip(graph.inputs, shapes, strict=True)]
    screen.line("inputs", ", ".join(words))
    screen.line("cost", f"{count(size.parameters)} parameters, {count(size.macs)} MACs per image, {count(size.bytes)}B")
    if stored := stored_in(graph):
        screen.line("stored", f"most numbers in {stored}; its bytes are counted in float32")
    screen.uncounted(size)


def _document(graph: ModelGraph, held: Mapping[tuple[str, int], str]) -> dict[str, Any]:
    """Spaces, and what cannot change, as JSON has them."""
    names = ("name", "size", "writers", "readers", "outer", "scalable", "mixed", "positions")
    return {
        "nodes": len(graph.module.graph.nodes),
        "spaces": [{name: getattr(space, name) for name in names} for space in graph.spaces],
        "frozen": [{"node": frozen.node, "reason": frozen.reason} for frozen in graph.frozen],
        "held": [{"weight": name, "axis": axis, "reason": why} for (name, axis), why in held.items()],
        "inputs": [{"name": spec.name, "shape": spec.shape[1:]} for spec in graph.inputs],
    }

"""`graphsurgery inspect`."""

from __future__ import annotations

from graphsurgery.cli.options import OPENING, SHOWN, Opening, Shown, small_file


def inspect(model: str, /, *, opening: Opening = OPENING, shown: Shown = SHOWN) -> None:
    """Show the spaces of a network (the sets of channels that change together), what is frozen and why, and the cost.

    Parameters
    ----------
    model
        A checkpoint, a state_dict with --arch, or a model spec.
    """
    from dataclasses import asdict

    from graphsurgery.cli.output import Screen, columns, count, few, in_few_lines
    from graphsurgery.surgery.channels.cost import cost
    from graphsurgery.surgery.gates import why_nothing
    from graphsurgery.surgery.reasons import by_reason, reasons

    screen = Screen(shown)
    graph = opening.graph(model)
    size = cost(graph)
    mixed = ["mixed by"] if any(space.mixed for space in graph.spaces) else []
    table = columns("space", "size", "written by", "read by", *mixed, right=["size"])
    for space in graph.spaces:
        kinds = sorted({where.partition(" at ")[0] for where in space.mixed})
        name = space.name if space.outer else f"{space.name} (inside another)"
        cells = [", ".join(kinds)] if mixed else []
        table.add_row(name, str(space.size), few(space.writers, 2), few(space.readers, 2), *cells)
    screen.show(table)
    for space in graph.spaces:
        if space.positions:
            screen.line("kept", f"{space.name}: {space.positions}; to cut it, name it: --keep-space {space.name}=0.5")
    if not graph.frozen:
        screen.line("frozen", "only the network's inputs and outputs" if graph.spaces else why_nothing(graph))
    for frozen in graph.frozen:
        screen.line("frozen", f"{frozen.node}: {frozen.reason}")
    held = reasons(graph)
    for line in in_few_lines(by_reason(held)):
        screen.line("held", line)
    for line in (line for record in graph.lineage for line in record.get("only as in evaluation", ())):
        screen.line("training", f"as in evaluation: {line}")
    for record in graph.lineage:
        if made := record.get("weights that were computed"):
            screen.line("training", f"{few(made)}: were computed from other weights, and are weights of their own here")
    shapes = ", ".join(f"{spec.name} {['batch', *spec.shape[1:]]}".replace("'", "") for spec in graph.inputs)
    screen.line("inputs", shapes)
    screen.line("cost", f"{count(size.parameters)} parameters, {count(size.macs)} MACs per image, {count(size.bytes)}B")
    screen.uncounted(size)
    names = ("name", "size", "writers", "readers", "outer", "scalable", "mixed", "positions")
    document = {
        "model": model,
        "nodes": len(graph.module.graph.nodes),
        "spaces": [{name: getattr(space, name) for name in names} for space in graph.spaces],
        "frozen": [{"node": frozen.node, "reason": frozen.reason} for frozen in graph.frozen],
        "held": [{"weight": name, "axis": axis, "reason": why} for (name, axis), why in held.items()],
        "inputs": [{"name": spec.name, "shape": spec.shape[1:]} for spec in graph.inputs],
        "cost": asdict(size),
        "lineage": graph.lineage,
    }
    screen.finish(document, "compress", model, *opening.tokens, "--keep", "0.5", "-o", small_file(model))

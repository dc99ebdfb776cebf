"""`graphsurgery factorize`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from graphsurgery.cli.options import (
    OPENING,
    PROOF,
    SHOWN,
    WRITING,
    DryRun,
    Opening,
    Output,
    Proof,
    Seed,
    Shown,
    Writing,
    without_dry_run,
)


def factorize(
    model: str,
    /,
    *,
    output: Output,
    layer: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    rank: float | None = None,
    energy: float | None = None,
    target: str | None = None,
    shape: Literal["channel", "spatial"] = "channel",
    how: Literal["svd", "random"] = "svd",
    back: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    seed: Seed = 0,
    dry_run: DryRun = False,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    proof: Proof = PROOF,
    shown: Shown = SHOWN,
) -> None:
    """Replace linear layers and convolutions by two with few channels between them.

    Parameters
    ----------
    model
        A checkpoint, a state_dict with --arch, or a model spec.
    layer
        Path of a layer; may be given again. By default all that become smaller.
    rank
        Channels between the two; up to 1 a share of the full rank.
    energy
        Share of the squared singular values that stays in each layer.
    target
        What the network may cost at most: params=0.5x, macs=300M or size=4MB.
    shape
        Convolutions become one of 1x1 behind the kernel (channel), or one down and one along it (spatial).
    how
        The best approximation (svd), or random factors to be trained.
    back
        Instead, multiply the factors to one layer again.
    """
    from graphsurgery.cli.output import Screen, columns, data_of, show_moved, write_network, writes_to
    from graphsurgery.errors import SurgeryError
    from graphsurgery.passes import factorize as passes
    from graphsurgery.recipes.contracts.edit_checks import unchanged
    from graphsurgery.surgery.deviation import changed_by

    writes_to(output, model, writing, reads=[opening.arch])
    screen = Screen(shown)
    if back and not (rank is None and energy is None and target is None):
        raise SurgeryError("factorize: --back multiplies factors; leave out --rank, --energy and --target")
    if rank is not None and rank > 1 and rank != int(rank):
        raise SurgeryError(f"factorize: --rank is {rank:g}; give whole channels, or a share of at most 1")
    graph = opening.graph(model)
    layers = list(layer) or None
    if back:
        new = passes.unfactorize(graph, layers)
    else:
        count: Any = int(rank) if rank is not None and rank > 1 else rank
        new = passes.factorize(graph, layers, rank=count, energy=energy, target=target, how=how, shape=shape, seed=seed)
    record = new.lineage[-1]
    document: dict[str, Any] = {"model": model, "factorized": dict(record)}
    if dry_run and not back:
        table = columns("layer", "full rank", "rank", right=["full rank", "rank"])
        for path, (full, kept) in record["ranks"].items():
            table.add_row(path, str(full), str(kept))
        screen.show(table)
        for path, reason in record["skipped"].items():
            screen.line("skipped", f"{path}: {reason}", "yellow")
    document |= screen.costs(graph, new)
    recovered = output.with_name(f"{output.stem}_recovered.pt")
    recover = ("mimic", "--teacher", model, "--student", output, "--data", data_of(graph), "-o", recovered)
    if back:
        check = unchanged("multiplied back = with factors", graph, new, seed)
        screen.require(check)
        document["deviation"] = check.measured
    document |= show_moved(screen, graph, new, recover, seed=seed)
    if how == "svd" and not back:
        document["deviation"] = changed_by(graph, new, seed)
    if dry_run:
        screen.line("dry run", f"would write {output}")
        screen.finish(document, *without_dry_run())
        return
    del graph  # the proof needs its memory
    write_network(screen, new, output, model, document, ("inspect", output), proof=proof)

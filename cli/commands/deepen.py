"""`graphsurgery deepen`."""

from __future__ import annotations

from graphsurgery.cli.growing import DEEPENING, Deepening, grow_file
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
)


def deepen(
    model: str,
    /,
    *,
    output: Output,
    data: str | None = None,
    deepening: Deepening = DEEPENING,
    seed: Seed = 0,
    dry_run: DryRun = False,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    proof: Proof = PROOF,
    shown: Shown = SHOWN,
) -> None:
    """Insert layers that give what they are given; the outputs stay the same.

    Parameters
    ----------
    model
        A checkpoint, a state_dict with --arch, or a model spec.
    data
        What the network was trained on: gives BatchNorms of inserted layers the statistics of what arrives.
    """
    from graphsurgery.errors import SurgeryError
    from graphsurgery.recipes.grow import Growth

    growth = Growth(**deepening.options(), seed=seed)
    if not growth.after:
        raise SurgeryError("deepen: nothing says where; give --after NAME, or --after auto")
    grow_file(
        model, output, growth, data=data, dry_run=dry_run, writing=writing, opening=opening, proof=proof, shown=shown
    )

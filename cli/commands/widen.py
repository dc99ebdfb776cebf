"""`graphsurgery widen`."""

from __future__ import annotations

from graphsurgery.cli.growing import WIDENING, Widening, grow_file
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


def widen(
    model: str,
    /,
    *,
    output: Output,
    widening: Widening = WIDENING,
    seed: Seed = 0,
    dry_run: DryRun = False,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    proof: Proof = PROOF,
    shown: Shown = SHOWN,
) -> None:
    """Add channels that copy what is there; the outputs stay the same.

    Parameters
    ----------
    model
        A checkpoint, a state_dict with --arch, or a model spec.
    """
    from graphsurgery.errors import SurgeryError
    from graphsurgery.recipes.grow import Growth

    growth = Growth(**widening.options(opening), seed=seed)
    if not growth.widens:
        raise SurgeryError("widen: nothing says how wide; give --by 1.5x, --to NAME=96 or --like SPEC")
    grow_file(
        model,
        output,
        growth,
        data=None,
        dry_run=dry_run,
        writing=writing,
        reads=[widening.like],
        opening=opening,
        proof=proof,
        shown=shown,
    )

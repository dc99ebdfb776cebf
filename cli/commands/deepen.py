"""`graphsurgery deepen`."""

from __future__ import annotations

from graphsurgery.cli.editing import EDITING, Editing
from graphsurgery.cli.growing import DEEPENING, Deepening, grow_file
from graphsurgery.cli.options import Output


def deepen(
    model: str,
    /,
    *,
    output: Output,
    data: str | None = None,
    deepening: Deepening = DEEPENING,
    editing: Editing = EDITING,
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

    growth = Growth(**deepening.options(), seed=editing.seed)
    if not growth.after:
        raise SurgeryError("deepen: nothing says where; give --after NAME, or --after auto")
    grow_file(model, output, growth, editing, data=data)

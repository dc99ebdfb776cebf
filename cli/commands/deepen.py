"""`graphsurgery deepen`."""

from __future__ import annotations

from graphsurgery.cli.arguments.sources import MaybeDataset, Model
from graphsurgery.cli.editing import EDITING, Editing
from graphsurgery.cli.growing import DEEPENING, Deepening, grow_file
from graphsurgery.cli.options import Output


def deepen(
    model: Model,
    /,
    *,
    output: Output,
    data: MaybeDataset = None,
    deepening: Deepening = DEEPENING,
    editing: Editing = EDITING,
) -> None:
    """Insert layers that give what they are given; the outputs stay the same.

    Parameters
    ----------
    model
        A checkpoint, an .onnx file, a state_dict (.pt or .safetensors) with --arch, or a model spec. An .onnx file
        can be written back as one: -o out.onnx.
    data
        What the network was trained on: gives BatchNorms of inserted layers the statistics of what arrives.
    """
    from graphsurgery.errors import SurgeryError
    from graphsurgery.recipes.grow import Growth

    growth = Growth(**deepening.options(), seed=editing.seed)
    if not growth.after:
        raise SurgeryError("deepen: nothing says where; give --after NAME, or --after auto")
    grow_file(model, output, growth, editing, data=data)

"""`graphsurgery widen`."""

from __future__ import annotations

from graphsurgery.cli.arguments.sources import Model
from graphsurgery.cli.editing import EDITING, Editing
from graphsurgery.cli.growing import WIDENING, Widening, grow_file
from graphsurgery.cli.options import Output


def widen(
    model: Model,
    /,
    *,
    output: Output,
    widening: Widening = WIDENING,
    editing: Editing = EDITING,
) -> None:
    """Add channels that copy what is there; the outputs stay the same.

    Parameters
    ----------
    model
        A checkpoint, an .onnx file, a state_dict (.pt or .safetensors) with --arch, or a model spec. An .onnx file
        can be written back as one: -o out.onnx.
    """
    from graphsurgery.errors import SurgeryError
    from graphsurgery.recipes.grow import Growth

    growth = Growth(**widening.options(editing.opening), seed=editing.seed)
    if not growth.widens:
        raise SurgeryError("widen: nothing says how wide; give --by 1.5x, --to NAME=96 or --like SPEC")
    grow_file(model, output, growth, editing, reads=[widening.like])

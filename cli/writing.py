"""How a command writes the network that it made: a checkpoint, or the `.onnx` file that the network came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphsurgery.cli.options import PROOF, Proof, Writing, writable
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from torch import Tensor

    from graphsurgery.cli.output import Output as Screen
    from graphsurgery.graph import ModelGraph


def writes_to(
    output: Path, model: str, writing: Writing, *, reads: Iterable[str | None] = (), **files: Path | None
) -> None:
    """Refuse, before any work is done, a file that could not be written or must not be.

    Args:
        output: the network that will be written; the `.onnx` file that `model` names may be written back into it.
        model: what the network is opened from.
        writing: whether files may be written over.
        reads: what else the command opens.
        files: what else it writes, by what it is.

    Raises:
        SurgeryError: as for `Writing.allow`, or it is an `.onnx` file and the network does not come from one.
    """
    writable(output)
    if output.suffix == ".onnx" and not model.endswith(".onnx"):
        raise SurgeryError(
            f"{output}: only what was an .onnx file is written back into one; give -o {output.with_suffix('.pt')}, "
            "and export that"
        )
    writing.allow(network=output, reads=(model, *reads), in_place=model, **files)


def write_network(
    screen: Screen,
    graph: ModelGraph,
    output: Path,
    model: str,
    document: Mapping[str, Any],
    following: Sequence[str | Path] = (),
    *,
    proof: Proof = PROOF,
    inputs: Sequence[Tensor] | None = None,
) -> None:
    """Write the network, prove an `.onnx` file in ONNX Runtime, and show the last lines.

    Args:
        screen: where to show it.
        graph: the network.
        output: the file.
        model: what the network was opened from.
        document: what is known of it, for the checkpoint and `--json`.
        following: the next command to try with a checkpoint; by default its export.
        proof: how an `.onnx` file is proved.
        inputs: real inputs, each `[batch, ...]`, that it is proved on too.
    """
    from graphsurgery.checkpoint import save

    if output.suffix != ".onnx":
        save(graph, output, **document)
        screen.line("wrote", str(output))
        following = following or ("export", output, "-o", output.with_suffix(".onnx"))
        screen.finish({**document, "files": {"network": output}}, *following)
        return
    import gc

    from graphsurgery.onnx.rewriting import rewrite_onnx
    from graphsurgery.recipes.outcome import Check

    gc.collect()  # graphs are full of cycles; the network as it was may still take its memory
    found = rewrite_onnx(model, graph, output, rtol=proof.rtol, inputs=inputs)
    screen.checks([Check("ONNX Runtime = PyTorch", found.deviation, found.allowed)])
    screen.untested(found.remarks)
    screen.line("wrote", str(output))
    screen.finish({**document, "onnx": found.as_dict(), "files": {"network": output}}, "diff", model, output)


def show_moved(
    screen: Screen, before: ModelGraph, after: ModelGraph, recover: Sequence[str | Path] = (), *, seed: int = 0
) -> dict[str, Any]:
    """Say what an edit without data did to the outputs, that it is not recovered, and by which command it can be.

    Args:
        screen: where to show it.
        before: the network as it was.
        after: the network as it is written.
        recover: the command, without `graphsurgery`, that brings accuracy back; empty where there is none.
        seed: draws the inputs.

    Returns:
        The same for the JSON document, under `moved`.
    """
    import shlex

    from graphsurgery.recipes.moved import moved

    found = moved(before, after, seed=seed)
    document: dict[str, Any] = {**found.as_dict(), "recovered": found.stays}
    if found.stays:
        screen.line("change", str(found))
        return {"moved": document}
    screen.line("change", f"{found}; not recovered", "yellow")
    if recover:
        document["recover"] = shlex.join(["graphsurgery", *map(str, recover)])
        screen.line("recover", document["recover"], "cyan")
    return {"moved": document}


def data_of(graph: ModelGraph) -> str:
    """The data that a network was last trained on, as far as it says; else a word to replace."""
    return next((str(record["data"]) for record in reversed(graph.lineage) if record.get("data")), "DATA")

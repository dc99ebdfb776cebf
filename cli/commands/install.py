"""`graphsurgery install`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Model
from graphsurgery.cli.options import OPENING, SHOWN, WRITING, Opening, Shown, Writing

Folder = Annotated[Path, Parameter(name=["--output", "-o"])]


def install(
    model: Model,
    /,
    *,
    into: Model,
    output: Folder,
    opening: Opening = OPENING,
    writing: Writing = WRITING,
    shown: Shown = SHOWN,
) -> None:
    """Put an edited network back into the class of a library that it came from, and write it as that library reads it.

    Both are run and compared; where they differ, or the class cannot hold the sizes, the reason is said and nothing is
    written.

    Parameters
    ----------
    model
        A checkpoint that an edit has written.
    into
        The spec that the network was opened by before it was edited: hf:FOLDER, hf:CLASS?..., ultralytics:FILE.
    output
        A folder, which from_pretrained loads; of ultralytics a .pt file.
    """
    from graphsurgery.cli.output import Screen, count
    from graphsurgery.models.libraries.installing import write_installed
    from graphsurgery.models.libraries.library import Trust
    from graphsurgery.models.specs import build

    writing.check_new(output)
    writing.check_apart(output, [into, model, opening.arch])
    screen = Screen(shown)
    graph = opening.graph(model)
    original = build(into, Trust(opening.trust_pickle, opening.trust_remote_code))
    fields = write_installed(graph, original, into, output)
    parameters = sum(parameter.numel() for parameter in graph.module.parameters())
    screen.line("class", f"{type(original).__name__}, {count(parameters)} parameters; the outputs are the network's")
    for name, value in fields.items():
        screen.line("config", f"{name} = {value}")
    screen.line("written", str(output))
    document = {"model": model, "into": into, "class": type(original).__name__, "config": fields, "output": str(output)}
    scheme = into.partition(":")[0]
    trust = ["--trust-pickle"] if scheme == "ultralytics" else []
    screen.finish(document, "inspect", f"{scheme}:{output}", *trust)

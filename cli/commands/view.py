"""`graphsurgery view`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from graphsurgery.cli.options import OPENING, SHOWN, WRITING, Opening, Shown, Writing

if TYPE_CHECKING:
    from graphsurgery.reports.diagrams.diagram import Diagram


def view(
    model: str,
    /,
    *,
    html: Path | None = None,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    shown: Shown = SHOWN,
) -> None:
    """Show a network, or an ONNX file, as a picture: in Netron where it is installed, else as one HTML file.

    Parameters
    ----------
    model
        A checkpoint, a state_dict with --arch, a model spec, or an ONNX file.
    html
        Write our own picture there, with or without Netron: of a network the layers by spaces of channels, of an ONNX
        file the nodes. By default, and with --json, it is named after the model.
    """
    import importlib.util

    from graphsurgery.cli.output import Screen

    screen = Screen(shown)
    is_file = Path(model).is_file()
    if html is None and is_file and not shown.json and importlib.util.find_spec("netron") is not None:
        import netron

        screen.line("netron", f"shows {model} in the browser; end with Ctrl+C")
        netron.start(model)
        netron.wait()
        return
    target = html or Path(f"{_stem(model)}.html")
    writing.allow(picture=target, reads=[model, opening.arch])
    from graphsurgery.reports.diagrams.diagram import write_diagram

    is_onnx = model.endswith(".onnx")
    diagram = _onnx(model, opening) if is_onnx else _network(model, opening)
    write_diagram(diagram, target)
    screen.line("picture", f"{len(diagram.boxes)} boxes, {', '.join(diagram.summary)}")
    screen.line("wrote", str(target))
    document = {"model": model, "boxes": len(diagram.boxes), "files": {"picture": target}}
    screen.finish(document, *(("diff", model, "OTHER.onnx") if is_onnx else ("inspect", model, *opening.tokens)))


def _stem(model: str) -> str:
    """A file name for the picture of a file or a spec."""
    return Path(model.partition("?")[0].replace(":", "_")).stem or "network"


def _onnx(model: str, opening: Opening) -> Diagram:
    from graphsurgery.onnx.files.model_file import read_onnx
    from graphsurgery.onnx.runtime.measured_shapes import counted_nodes
    from graphsurgery.reports.diagrams.onnx_diagram import onnx_diagram

    file = read_onnx(model)
    return onnx_diagram(counted_nodes(file, opening.shape()), Path(model).name, file.bytes)


def _network(model: str, opening: Opening) -> Diagram:
    from graphsurgery.reports.diagrams.network_diagram import network_diagram

    return network_diagram(opening.graph(model), Path(model).name if Path(model).is_file() else model)

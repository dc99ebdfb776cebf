"""`graphsurgery view`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from graphsurgery.cli.arguments.cutting import MEASURING, Measuring
from graphsurgery.cli.arguments.sources import Model
from graphsurgery.cli.options import OPENING, SHOWN, WRITING, Opening, Shown, Writing, small_file
from graphsurgery.errors import SurgeryError

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.graph import ModelGraph
    from graphsurgery.recipes.compression.to_latency import Timed
    from graphsurgery.reports.diagrams.diagram import Diagram
    from graphsurgery.reports.diagrams.plan import Plan


def view(
    model: Model,
    /,
    *,
    html: Path | None = None,
    latency: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    measuring: Measuring = MEASURING,
    writing: Writing = WRITING,
    opening: Opening = OPENING,
    shown: Shown = SHOWN,
) -> None:
    """Show a network, or an ONNX file, as a picture, and plan a cut of it with sliders: one HTML file. Or in Netron.

    Parameters
    ----------
    model
        A checkpoint, an .onnx file, a state_dict (.pt or .safetensors) with --arch, or a model spec.
    html
        Write our own page there, with or without Netron: of a network the layers by spaces of channels, of an ONNX
        file the nodes, and a slider for each space with what the cut would cost and the command that makes it. By
        default, and with --json, it is named after the model.
    latency
        Also time the operators in ONNX Runtime, so that the page predicts how long a cut network takes.
    """
    import importlib.util

    from graphsurgery.cli.output import Screen

    if measuring != MEASURING and not latency:
        raise SurgeryError("view: --threads, --batch and --runs say how a latency is measured; give --latency")
    screen = Screen(shown)
    is_file = Path(model).is_file()
    ours = html is not None or latency or shown.json or not is_file
    if not ours and importlib.util.find_spec("netron") is not None:
        import netron

        screen.line("netron", f"shows {model} in the browser; end with Ctrl+C")
        netron.start(model)
        netron.wait()
        return
    target = html or Path(f"{_stem(model)}.html")
    writing.allow(picture=target, reads=[model, opening.arch])
    from graphsurgery.reports.diagrams.page import write_diagram

    page = _Page(screen, model, opening, measuring if latency else None)
    is_onnx = model.endswith(".onnx")
    diagram = page.of_file() if is_onnx else page.of_network()
    write_diagram(diagram, target)
    screen.line("picture", f"{len(diagram.boxes)} boxes, {', '.join(diagram.summary)}")
    screen.line("wrote", str(target))
    document = {"model": model, "boxes": len(diagram.boxes), **page.document, "files": {"picture": target}}
    screen.finish(document, *(("diff", model, "OTHER.onnx") if is_onnx else ("inspect", model, *opening.tokens)))


def _stem(model: str) -> str:
    """A file name for the picture of a file or a spec."""
    return Path(model.partition("?")[0].replace(":", "_")).stem or "network"


@dataclass
class _Page:
    """What is shown of a model, and what is known of it for the JSON document."""

    screen: Screen
    model: str
    opening: Opening
    measuring: Measuring | None

    def __post_init__(self) -> None:
        self.document: dict[str, Any] = {}

    def of_file(self) -> Diagram:
        """The nodes of an ONNX file; the sliders where it can be opened as a network."""
        from graphsurgery.onnx.files.model_file import read_onnx
        from graphsurgery.onnx.runtime.measured_shapes import counted_nodes
        from graphsurgery.reports.diagrams.onnx_diagram import onnx_diagram

        file = read_onnx(self.model)
        nodes, title = counted_nodes(file, self.opening.shape()), Path(self.model).name
        try:
            plan, missing = self.plan(self.opening.graph(self.model))
        except SurgeryError as cause:
            plan, missing = None, self.without(cause)
        return onnx_diagram(nodes, title, file.bytes, plan, missing)

    def of_network(self) -> Diagram:
        """The layers of a network, and the sliders."""
        from graphsurgery.reports.diagrams.network_diagram import network_diagram

        graph = self.opening.graph(self.model)
        plan, missing = self.plan(graph)
        title = Path(self.model).name if Path(self.model).is_file() else self.model
        return network_diagram(graph, title, plan, missing)

    def plan(self, graph: ModelGraph) -> tuple[Plan | None, tuple[str, ...]]:
        """How the network can be cut; or None, and why not."""
        from graphsurgery.reports.diagrams.plan import Plan

        if not graph.spaces:
            return None, ()
        command = ("graphsurgery", "compress", self.model, *self.opening.tokens)
        try:
            plan = Plan.of(graph, command, small_file(self.model))
        except SurgeryError as cause:
            return None, self.without(cause)
        return plan if self.measuring is None else plan.timed(self.timed(plan.graph, self.measuring)), ()

    def timed(self, graph: ModelGraph, measuring: Measuring) -> Timed:
        """The table of what its operators take, and the step that the runtime rewards."""
        from graphsurgery.cli.compressing import show_steps, show_table
        from graphsurgery.recipes.compression.to_latency import network_files, timed

        timing = measuring.timing()
        self.screen.line("timing", f"ONNX Runtime, {timing}")
        with network_files(graph, self.model if self.model.endswith(".onnx") else None) as files:
            found = timed(graph, files, timing)
        self.document |= {"steps": show_steps(self.screen, found.steps), "table": show_table(self.screen, found.table)}
        return found

    def without(self, cause: SurgeryError) -> tuple[str, ...]:
        """Say that there are no sliders, and why."""
        if self.measuring is not None:
            raise cause
        self.screen.line("note", f"no sliders to plan a cut: {cause}", "yellow")
        return (f"No sliders to plan a cut: {cause}.",)

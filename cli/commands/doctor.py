"""`graphsurgery doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from graphsurgery.cli.arguments.sources import Model
from graphsurgery.cli.options import OPENING, SHOWN, Opening, Seed, Shown

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen
    from graphsurgery.recipes.contracts.doctor import DoctorReport
    from graphsurgery.reports.sheet import Sheet


def doctor(
    model: Model,
    /,
    *,
    onnx: Annotated[bool, Parameter(negative="--no-onnx")] = True,
    slim: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    seed: Seed = 0,
    opening: Opening = OPENING,
    shown: Shown = SHOWN,
) -> None:
    """Trace a network, apply every pass to it, and measure every contract in float64.

    Parameters
    ----------
    model
        A checkpoint, an .onnx file, a state_dict (.pt or .safetensors) with --arch, or a model spec.
    onnx
        Also compare with ONNX Runtime.
    slim
        Also run it as a slimmable network, at the whole width and at narrower ones.
    """
    from graphsurgery.cli.output import Screen
    from graphsurgery.recipes.contracts.doctor import examine

    screen = Screen(shown)
    graph, module = opening.pair(model)
    report = examine(graph, module, seed=seed, onnx=onnx, slim=slim)
    _show_network(screen, report)
    screen.show(_contracts(report))
    if report.insensitive:
        words = f"with other inputs the outputs change by {report.sensitivity:.0e} only: equality says less"
        screen.line("warning", words, "yellow")
    screen.line("time", f"{report.seconds:.1f} s")
    screen.finish({"model": model, **report.as_dict()}, "inspect", model, *opening.tokens)
    report.require(model)


def _show_network(screen: Screen, report: DoctorReport) -> None:
    """What was traced, what is frozen or held, and what it costs."""
    from graphsurgery.cli.output import count

    screen.line("traced", f"{report.nodes} nodes, {report.spaces} spaces, {len(report.frozen)} frozen")
    for node, reason in report.frozen:
        screen.line("frozen", f"{node}: {reason}")
    for reason, held in report.held:
        screen.line("held", f"{count(held)} parameters: {reason}")
    kept = "nothing can be removed" if report.kept is None else f"{report.kept:.1%} of them stay at --keep 0.5"
    parameters = f"{count(report.parameters)} parameters ({report.editable:.1%} editable, {kept})"
    screen.line("cost", f"{parameters}, {count(report.macs)} MACs per image")


def _contracts(report: DoctorReport) -> Sheet:
    """A row for each contract."""
    from rich.text import Text

    from graphsurgery.cli.output import columns

    numbers = ["measured", "allowed", "seconds"]
    head = ("contract", "measured", "allowed", "", "seconds", "note")
    table = columns(*head, right=numbers, marks=[""], drop=["seconds"])
    styles = {"holds": "green", "fails": "bold red", "refused": "yellow", "not measured": "dim", "stated": ""}
    for contract in report.contracts:
        measured = "" if contract.measured is None else f"{contract.measured:.1e}"
        allowed = "" if contract.allowed is None else f"{contract.allowed:.0e}"
        status = Text(contract.status, styles[contract.status])
        note = contract.refused or contract.absent or contract.note
        table.add_row(contract.name, measured, allowed, status, f"{contract.seconds:.1f}", note)
    return table

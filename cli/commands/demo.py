"""`graphsurgery demo`."""

from __future__ import annotations

from pathlib import Path

from graphsurgery.cli.options import SHOWN, WRITING, Seed, Shown, Writing


def demo(
    *,
    folder: Path = Path("demo"),
    data: str = "digits",
    seed: Seed = 0,
    writing: Writing = WRITING,
    shown: Shown = SHOWN,
) -> None:
    """Train two networks, merge them, export the result, check it, and write a report; under three minutes.

    Parameters
    ----------
    folder
        Where everything goes; made if it is missing.
    data
        What the networks learn.
    """
    from dataclasses import replace

    import torch

    from graphsurgery.cli.output import Screen
    from graphsurgery.recipes.demo import FILES
    from graphsurgery.recipes.demo import demo as recipe
    from graphsurgery.reports.html import write_report
    from graphsurgery.reports.tables import OutcomeTable

    writing.check_new(*(folder / name for name in FILES))
    screen = Screen(shown)
    # On networks this small one thread is as fast as many, and sums in the same order on every machine.
    torch.set_num_threads(1)
    outcome = recipe(folder, data=data, seed=seed, reporter=screen.reporter())
    report = folder / "report.html"
    outcome = replace(outcome, files={**outcome.files, "report": str(report)})
    write_report(outcome, report)
    screen.show(OutcomeTable(outcome))
    screen.checks(outcome.checks)
    screen.line("verdict", outcome.verdict)
    for name, path in outcome.files.items():
        screen.line("wrote", f"{path} ({name})")
    screen.finish({"outcome": outcome.as_dict()}, "inspect", outcome.files.get("network", folder / "merged.pt"))

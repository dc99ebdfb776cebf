"""`graphsurgery demo`."""

from __future__ import annotations

from pathlib import Path

from graphsurgery.cli.arguments.sources import Dataset
from graphsurgery.cli.options import SHOWN, WRITING, Seed, Shown, Writing


def demo(
    *,
    folder: Path = Path("demo"),
    data: Dataset = "digits?train=200&validation=100",
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

    from graphsurgery.cli.session import TrainingSession
    from graphsurgery.recipes.demo import FILES
    from graphsurgery.recipes.demo import demo as recipe

    writing.check_new(*(folder / name for name in FILES))
    files = {"network": folder / "merged.pt", "report": folder / "report.html"}
    session = TrainingSession(shown, {"data": data}, files)
    # On networks this small one thread is as fast as many, and sums in the same order on every machine.
    torch.set_num_threads(1)
    outcome = recipe(folder, data=data, seed=seed, reporter=session.screen.reporter())
    outcome = replace(outcome, files={**outcome.files, "report": str(session.files["report"])})
    session.report(outcome)
    session.show(outcome)
    session.finish(outcome, "inspect", session.files["network"])

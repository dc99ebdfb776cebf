"""`graphsurgery --install-completion`."""

from __future__ import annotations

from typing import Literal

from graphsurgery.cli.options import SHOWN, Shown
from graphsurgery.errors import SurgeryError


def install_completion(*, shell: Literal["bash", "zsh", "fish"] | None = None, shown: Shown = SHOWN) -> None:
    """Let the shell complete commands and options; a line that loads the script goes into the shell's start file.

    Parameters
    ----------
    shell
        By default the one that runs.
    """
    from cyclopts.completion.detect import ShellDetectionError

    from graphsurgery.cli import app
    from graphsurgery.cli.output import Screen

    screen = Screen(shown)
    try:
        path = app.install_completion(shell=shell)
    except ShellDetectionError as error:
        raise SurgeryError(
            "--install-completion: which shell runs is not known; give --shell bash, zsh or fish"
        ) from error
    screen.line("wrote", str(path))
    screen.line("shell", "a new one completes; start it")
    screen.finish({"files": {"completion": path}}, "--help")

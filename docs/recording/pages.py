"""Pages whose commands are run: what stands behind each `$` is what the command printed.

A page is Markdown. `<!-- files: photos resnet -->` makes these files of `materials` first. A block of Python with
`title="nets.py"` is written as that file. A block `console` has commands, each behind `$ ` and with more lines where
one ends in a backslash, and below each what it printed; where that ends in `exit code 2`, the command has to fail so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from recording.materials import MATERIALS
from recording.terminal import EXIT, printed

FILES = r"<!-- files: (?P<files>[\w ]+) -->"
PYTHON = r'```python title="(?P<name>[\w.]+)"\n(?P<code>.*?)```\n'
CONSOLE = r"(?<=```console\n)(?P<commands>\$ .*?\n)(?=```\n)"
COMMAND = re.compile(r"(?:.*\\\n)*.*")
"""One line, and those behind a backslash at its end."""
BLOCK = re.compile(f"{FILES}|{PYTHON}|{CONSOLE}", re.DOTALL)


def recorded(text: str, folder: Path, told: Callable[[str], None]) -> str:
    """The page with what its commands print today, run in order in a folder."""

    def done(block: re.Match[str]) -> str:
        for name in (block["files"] or "").split():
            MATERIALS[name](folder)
        if block["name"]:
            (folder / block["name"]).write_text(block["code"], encoding="utf-8")
        if not block["commands"]:
            return block[0]
        return "\n".join(run(command, code) for command, code in commands_of(block["commands"]))

    def run(command: str, code: int) -> str:
        told(command)
        return f"$ {command}\n{printed(command, folder, code=code)}".rstrip() + "\n"

    return BLOCK.sub(done, text)


def commands_of(block: str) -> Iterator[tuple[str, int]]:
    """The commands of a block, and the exit code that each is to have."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command = COMMAND.match(part)
        assert command is not None
        last = part.strip().rpartition("\n")[2]
        yield command[0], int(last.removeprefix(EXIT)) if last.startswith(EXIT) else 0


def commands(text: str) -> list[str]:
    """All commands of a page, each in one line."""
    blocks = (block["commands"] or "" for block in BLOCK.finditer(text))
    return [command.replace("\\\n", "") for block in blocks for command, _ in commands_of(block)]

"""Record the README's transcripts and the picture of the report: `python docs/record.py`, two minutes.

Every fenced block of README.md that begins with `$ graphsurgery` is run as it stands, all in one temporary folder, as
on a terminal of 100 columns, and replaced by what it prints; progress bars are left out. The picture of the report
needs chromium; without it the old picture stays.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageChops

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
COLUMNS = 100
STYLE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
BLOCK = re.compile(r"(?<=```console\n)(\$ graphsurgery .*?\n)(?=```\n)", re.DOTALL)


def printed(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    """What a command prints on a terminal's standard output.

    Raises:
        subprocess.CalledProcessError: it fails.
    """
    terminal, screen = pty.openpty()
    with (folder / "progress").open("w+") as progress:
        process = subprocess.Popen(command, shell=True, cwd=folder, stdout=screen, stderr=progress, env=environment)
        os.close(screen)
        chunks = []
        # Linux raises where others give nothing when the other end is closed.
        with contextlib.suppress(OSError):
            while chunk := os.read(terminal, 65536):
                chunks.append(chunk)
        os.close(terminal)
        if process.wait():
            progress.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, stderr=progress.read())
    text = STYLE.sub("", b"".join(chunks).decode())
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def picture(report: Path, folder: Path) -> None:
    """Take a picture of a report, without the empty margins."""
    shot = folder / "report.png"
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --disable-sync"
    options += " --disable-component-update --hide-scrollbars --window-size=1100,3000"
    profile = f"--user-data-dir={folder / 'profile'}"
    command = ["chromium", *options.split(), profile, f"--screenshot={shot}", report.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    page = Image.open(shot).convert("RGB")
    empty = Image.new("RGB", page.size, page.getpixel((0, 0)))
    left, top, right, bottom = ImageChops.difference(page, empty).getbbox() or (0, 0, *page.size)
    page = page.crop((left - 40, top - 40, right + 40, bottom + 40))
    page.quantize(128, dither=Image.Dither.NONE).save(DOCS / "images" / "report.png", optimize=True)


def main() -> None:
    """Run every block in order, and write the README when all have run."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    screen = {"PATH": path, "COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **screen}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(block: re.Match[str]) -> str:
            commands = [line[2:] for line in block[1].splitlines() if line.startswith("$ ")]
            parts = [f"$ {command}\n{printed(command, folder, environment)}\n" for command in commands]
            return "\n".join(parts)

        page = BLOCK.sub(run, README.read_text(encoding="utf-8"))
        README.write_text(page, encoding="utf-8")
        if shutil.which("chromium"):
            picture(folder / "demo" / "report.html", folder)


if __name__ == "__main__":
    main()

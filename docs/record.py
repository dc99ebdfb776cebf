"""Record the README's transcripts and its pictures of pages: `python docs/record.py`, two minutes.

Every fenced block of README.md that begins with `$ graphsurgery` is run as it stands, all in one temporary folder, as
on a terminal of 100 columns, and replaced by what it prints; progress bars are left out. The pictures of pages need
chromium; without it the old ones stay.
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


PICTURES = {
    "report.png": ("demo/report.html", "", "1100,3000"),
    "plan.png": ("plan.html", "#keep=0.75&keep-space=stem.0%3D5", "1280,800"),
}
"""By name: the page, what its address asks it for, and the size of the window."""


def picture(name: str, folder: Path) -> None:
    """Take a picture of a page, without the empty margins."""
    page_name, asked, size = PICTURES[name]
    shot = folder / name
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --disable-sync"
    options += " --disable-component-update --hide-scrollbars --force-device-scale-factor=1"
    profile = f"--user-data-dir={folder / 'profile'}"
    address = (folder / page_name).as_uri() + asked
    command = ["chromium", *options.split(), f"--window-size={size}", profile, f"--screenshot={shot}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    page = Image.open(shot).convert("RGB")
    empty = Image.new("RGB", page.size, page.getpixel((0, 0)))
    left, top, right, bottom = ImageChops.difference(page, empty).getbbox() or (0, 0, *page.size)
    page = page.crop((max(0, left - 40), max(0, top - 40), min(page.width, right + 40), min(page.height, bottom + 40)))
    # Of the colors of a page, those of small areas are as important as others.
    few = page.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(DOCS / "images" / name, optimize=True)


def main() -> None:
    """Run every block in order, and write the README when all have run."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    screen = {"PATH": path, "COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **screen}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def run(block: re.Match[str]) -> str:
            commands = [line[2:] for line in block[1].splitlines() if line.startswith("$ ")]
            parts = [f"$ {command}\n{printed(command, folder, environment)}\n" for command in commands]
            return "\n".join(parts)

        page = BLOCK.sub(run, README.read_text(encoding="utf-8"))
        README.write_text(page, encoding="utf-8")
        if shutil.which("chromium"):
            for name in PICTURES:
                picture(name, folder)


if __name__ == "__main__":
    main()

"""What commands print on a terminal, and pictures of pages."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageChops

COLUMNS = 100
STYLE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
EXIT = "exit code "


def environment() -> dict[str, str]:
    """A terminal of 100 columns without colours, with the commands of this Python in front."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    screen = {"PATH": path, "COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **screen}


def printed(command: str, folder: Path, *, code: int = 0) -> str:
    """What a command prints on a terminal's standard output; where it is to fail, the errors and its exit code too.

    Raises:
        subprocess.CalledProcessError: its exit code is another.
    """
    terminal, screen = pty.openpty()
    with (folder / ".progress").open("w+") as progress:
        run = subprocess.Popen(command, shell=True, cwd=folder, stdout=screen, stderr=progress, env=environment())
        os.close(screen)
        chunks = []
        # Linux raises where others give nothing when the other end is closed.
        with contextlib.suppress(OSError):
            while chunk := os.read(terminal, 65536):
                chunks.append(chunk)
        os.close(terminal)
        found = run.wait()
        progress.seek(0)
        errors = progress.read()
    if found != code:
        raise subprocess.CalledProcessError(found, command, stderr=errors)
    text = STYLE.sub("", b"".join(chunks).decode())
    if code:
        text += "\n".join([*(line for line in errors.splitlines() if line.startswith("error")), f"{EXIT}{code}"])
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def picture(address: str, size: str, folder: Path, to: Path) -> None:
    """Take a picture of a page in a window of that size, such as `1100,3000`, without the empty margins."""
    shot = folder / to.name
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --disable-sync"
    options += " --disable-component-update --hide-scrollbars --force-device-scale-factor=1"
    profile = f"--user-data-dir={folder / 'profile'}"
    command = ["chromium", *options.split(), f"--window-size={size}", profile, f"--screenshot={shot}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    page = Image.open(shot).convert("RGB")
    empty = Image.new("RGB", page.size, page.getpixel((0, 0)))
    left, top, right, bottom = ImageChops.difference(page, empty).getbbox() or (0, 0, *page.size)
    page = page.crop((max(0, left - 40), max(0, top - 40), min(page.width, right + 40), min(page.height, bottom + 40)))
    # Of the colors of a page, those of small areas are as important as others.
    few = page.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(to, optimize=True)

"""Results into docs/benchmarks.md: each benchmark owns one section between markers, which a rerun replaces."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def write_section(name: str, text: str, path: Path = DOCS / "benchmarks.md") -> None:
    """Replace what stands between the markers of section `name`; the rest of the page stays.

    Raises:
        ValueError: the page lacks one of the two markers.
    """
    page = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{path}: the markers {begin} and {end} are missing; add them where the section should stand")
    path.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)]), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def measured(command: str, seconds: float, *packages: str) -> str:
    """The command, the date, the versions and the class of machine, as the line above a table."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", *packages))
    machine = f"{os.cpu_count()} cores {platform.machine()}, CPU only, one thread"
    today = datetime.date.today().isoformat()
    return f"```\n{command}\n```\n\nMeasured {today} in {seconds / 60:.0f} minutes on {machine}; {versions}."

"""Record what the documents show: `python docs/record.py`, some minutes.

The commands of README.md, of the tutorials and of the three users' first hour are run as they stand, each page's in a
temporary folder of its own, as on a terminal of 100 columns, and what they print is put in their place; progress bars
are left out. The notebook is run, and pictures of pages are taken again (they need chromium; without it the old ones
stay). `python docs/record.py docs/tour.ipynb` records one page.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from recording.notebook import execute
from recording.pages import recorded
from recording.terminal import picture

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
NOTEBOOK = DOCS / "tour.ipynb"
PAGES = [README, *sorted((DOCS / "tutorials").glob("*.md")), DOCS / "first_hour.md", NOTEBOOK]

PICTURES = {
    "report.png": ("demo/report.html", "", "1100,3000"),
    "plan.png": ("plan.html", "#keep=0.75&keep-space=stem.0%3D5", "1280,800"),
}
"""By name: the page that README's commands make, what its address asks it for, and the size of the window."""


def main() -> None:
    """Record one page after another; each is written when all of its commands have run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, help="by default all")
    for page in [page.resolve() for page in parser.parse_args().pages] or PAGES:
        with tempfile.TemporaryDirectory() as folder:
            record(page, Path(folder))


def record(page: Path, folder: Path) -> None:
    """Record one page in a folder."""
    told(f"# {page.name}")
    if page.suffix == ".ipynb":
        execute(page, folder)
        return
    text = recorded(page.read_text(encoding="utf-8"), folder, told)
    page.write_text(text, encoding="utf-8")
    if page == README and shutil.which("chromium"):
        for name, (made, asked, size) in PICTURES.items():
            picture((folder / made).as_uri() + asked, size, folder, DOCS / "images" / name)


def told(line: str) -> None:
    """Say what is run now."""
    print(line, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()

"""The documentation as a site: a strict build has all pages, and what pages show is what the commands take."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import graphsurgery as gs
from graphsurgery.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SHOWN = [ROOT / "README.md", *sorted((DOCS / "tutorials").glob("*.md")), DOCS / "first_hour.md"]
COMMANDS = [name for name in app if not name.startswith("-")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it: a page that is nowhere, or a link that leads nowhere, fails."""
    folder = tmp_path_factory.mktemp("site")
    code = "import gc; gc.disable(); from mkdocs.__main__ import cli; cli()"  # a fifth of its time
    command = [sys.executable, "-c", code, "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return folder


def test_everything_that_the_package_shows_is_in_the_reference(site):
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    assert not [name for name in gs.__all__ if f'id="graphsurgery.{name}"' not in pages]
    assert "Source" in pages
    assert "Chen, Goodfellow" in pages


def test_each_part_of_the_site_is_named_once(site):
    start = (site / "index.html").read_text(encoding="utf-8")
    parts = re.findall(r'class="md-tabs__link">\s*(.*?)\s*</a>', start)
    assert parts[:4] == ["Start", "First hour", "Commands", "Reference"]
    assert len(set(parts)) == len(parts)


def test_every_command_has_a_page_with_its_options(site):
    assert {page.stem for page in (site / "commands").glob("*.html")} == {"index", *COMMANDS}
    page = (site / "commands" / "compress.html").read_text(encoding="utf-8")
    assert not [option for option in ("--target", "--keep", "--calib", "-o PATH") if option not in page]


def test_the_site_asks_nobody_else(site):
    """No style, script or font comes from elsewhere, so that it reads the same without a network."""
    pages = [page.read_text(encoding="utf-8") for page in site.rglob("*.html")]
    assert not [page for page in pages if 'src="http' in page or 'stylesheet" href="http' in page]


def test_links_from_beside_docs_lead_to_pages(site):
    start = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="benchmarks.html#merging"' in start
    assert 'href="CONTRIBUTING.html"' in start
    assert 'href="../examples.html#merge_twopy"' in (site / "tutorials" / "researcher.html").read_text(encoding="utf-8")
    assert 'id="merge_twopy"' in (site / "examples.html").read_text(encoding="utf-8")


@pytest.fixture
def commands_of(monkeypatch):
    """What finds the commands of a page."""
    monkeypatch.syspath_prepend(str(DOCS))
    from recording.pages import commands

    return commands


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.stem)
def test_commands_that_are_shown_have_these_options(page, commands_of):
    """They are run by `docs/record.py`, which takes minutes; here their options are looked up."""
    shown = [shlex.split(line.partition(" | ")[0]) for line in commands_of(page.read_text(encoding="utf-8"))]
    shown = [words[1:] for words in shown if words[0] == "graphsurgery"]
    assert len(shown) > 3
    for command, *words in shown:
        known = {name for argument in app[command].assemble_argument_collection() for name in argument.names}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= known, command


def test_the_notebook_keeps_what_its_cells_gave():
    cells = json.loads((DOCS / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    assert len(outputs) > 5
    assert not [kind for output in outputs for kind in output if kind["output_type"] == "error"]
    assert sum(bool(output) for output in outputs) > len(outputs) // 2

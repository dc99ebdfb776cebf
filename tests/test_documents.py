"""What the documents name is there."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "docs" / "tests.md"
"""Lists the tests as they were when they were measured."""
PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if path != MEASURED)
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *PAGES]
ROOMS = ("", "graphsurgery/", "docs/", "tests/")
MADE = ("build/", "runs/", "demo/", "tickets/", "images/", "path/", "DIR/")
"""Folders that commands make, and stand-ins."""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./-]+/[\w./-]*\.(?:py|md|toml|sh|c|svg|png))`", text))
    named |= set(re.findall(r"\]\(([\w./-]+\.(?:md|svg|png))[)#]", text))
    here = str(Path(document).parent)
    rooms = [*ROOMS, "" if here == "." else f"{here}/"]
    lost = [name for name in named if not any((ROOT / room / name).exists() for room in rooms)]
    assert not [name for name in sorted(lost) if not name.startswith(MADE)]


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_to_files_and_headings_on_a_code_host(document):
    text = re.sub(r"^( *```).*?^\1", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:", link)]
    assert not [link for link in links if not _leads_somewhere(ROOT / document, *link.partition("#")[::2])]


def _leads_somewhere(page, name, anchor):
    """Whether a file is there, and a heading that code hosts call so."""
    target = (page.parent / name).resolve() if name else page
    if not anchor or not target.exists():
        return target.exists()
    titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
    return anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_the_code_that_contributing_shows_is_there():
    """Every example is a passage of one file, but for lines that it leaves out and remarks behind a line."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = [path for room in ("graphsurgery", "passes", "cli", "tests") for path in (ROOT / room).rglob("*.py")]
    sources = [set(map(str.rstrip, path.read_text(encoding="utf-8").splitlines())) for path in files]
    shown = [block.splitlines() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    assert len(shown) > 2
    for lines in shown:
        wanted = {line.partition("  # ")[0].rstrip() for line in lines} - {""}
        assert any(wanted <= source for source in sources), lines[0]


def test_the_tables_of_the_readme_are_those_of_the_commands():
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert module.with_tables(page) == page  # else run python docs/tables.py
    assert all(f"`{line}`" in page or line in page for line in ("graphsurgery models", "graphsurgery data"))
    with pytest.raises(ValueError, match="wants <!-- models: begin -->"):
        module.with_tables("")

"""What mkdocs adds to the pages of docs/: the files beside it, the commands, the reference, the notebook, the examples.

README.md and its neighbours link to files as a code host shows them. Here every such link is turned to the page that
the file has become; a link to what is not in the site fails the strict build.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

from cyclopts import App
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Page

import graphsurgery as gs
from graphsurgery.cli import app

ROOT = Path(__file__).parents[1]
BESIDE = {"README.md": "index.md", **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}}
"""The pages that stand beside docs/, and what they are called here."""
NOTEBOOK = "tour"
FENCE = re.compile(r"^ *(`{3,}).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
EXAMPLES = re.compile(r"^Examples:\n\n((?: +.*\n+)+)")
LINK = re.compile(r"(?<=\]\()([\w./-]+)(#[\w-]*)?(?=\))")


def on_config(config: MkDocsConfig) -> None:
    """Put the commands and the reference into the navigation, in front of what explains them."""
    commands = [{name: f"commands/{name}.md"} for name in commands_of(app)]
    reference = [{group: f"reference/{file_name(group)}.md"} for group in groups()]
    assert config.nav is not None
    config.nav[2:2] = [
        {"Commands": ["commands/index.md", *commands]},
        {"Reference": ["reference/index.md", *reference]},
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that nobody writes."""
    for name, text in pages():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """A page whose links lead to pages, and whose lists are indented as Python-Markdown wants them."""
    home = {here: name for name, here in BESIDE.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return "".join(
        part if fenced else with_links(indented(part), home, page.file.src_uri) for part, fenced in split(markdown)
    )


def pages() -> Iterator[tuple[str, str]]:
    """Every page that is made, by its name."""
    for name, here in BESIDE.items():
        yield here, (ROOT / name).read_text(encoding="utf-8")
    yield "LICENSE", (ROOT / "LICENSE").read_text(encoding="utf-8")
    yield f"{NOTEBOOK}.md", notebook(ROOT / "docs" / f"{NOTEBOOK}.ipynb")
    yield "examples.md", examples()
    yield "commands/index.md", overview()
    for name in commands_of(app):
        yield f"commands/{name}.md", command(name)
    yield "reference/index.md", f"# Reference\n\n```text\n{gs.__doc__}```\n"
    for group, names in groups().items():
        yield f"reference/{file_name(group)}.md", "\n\n".join([f"# {group}", *(f"::: graphsurgery.{n}" for n in names)])


def commands_of(application: App) -> list[str]:
    """The commands of an application by name, without its flags."""
    return [name for name in application if not name.startswith("-")]


def overview() -> str:
    """The page that lists the commands."""
    lines = [f"| [`{name}`]({name}.md) | {app[name].help} |" for name in commands_of(app)]
    table = "\n".join(["| command | what it does |", "| --- | --- |", *lines])
    return f"# Commands\n\n{table}\n\n{app.help_epilogue}\n"


def command(name: str) -> str:
    """The page of a command: its help, with a heading for each group of options and for the examples below them."""
    text = app[name].generate_docs(usage_name=f"graphsurgery {name}")
    text = re.sub(r"^\*\*(.+)\*\*:$", r"## \1", text, flags=re.MULTILINE)
    below = str(app[name].help_epilogue or "")
    return f"{text}\n\n{re.sub(EXAMPLES, fenced, below)}\n"


def fenced(examples: re.Match[str]) -> str:
    """The examples of a command under a heading."""
    return f"## Examples\n\n```sh\n{dedent(examples[1]).strip()}\n```\n\n"


def groups() -> dict[str, list[str]]:
    """What `graphsurgery` shows, in the groups of its docstring: lines that begin with a title and a gap."""
    found: dict[str, list[str]] = {}
    for line in (gs.__doc__ or "").split("\n\n")[1].splitlines():
        title = re.match(r"(\w[\w ]*?)  +", line)
        if title:
            found[title[1]] = []
        words = re.findall(r"\w+", line[title.end() if title else 0 :])
        found[next(reversed(found))] += [word for word in words if word in gs.__all__]
    return found


def file_name(title: str) -> str:
    """A title as a file is called."""
    return title.lower().replace(" ", "_")


def examples() -> str:
    """The files of examples/, each with the first line of its docstring."""
    parts = ["# Examples\n\nWhole programs, which the tests run. Each trains on data that it has with it.\n"]
    for path in sorted((ROOT / "examples").glob("*.py")):
        parts.append(f"## {path.name}\n\n```python\n{path.read_text(encoding='utf-8')}```\n")
    return "\n".join(parts)


def notebook(path: Path) -> str:
    """A notebook as a page: its texts, its code, and what the code gave."""
    return "\n\n".join(
        part for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for part in cell_parts(cell)
    )


def cell_parts(cell: dict[str, Any]) -> Iterator[str]:
    """The text of a cell; code is fenced, and what came out is fenced below."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", [])})
        if "image/svg+xml" in data:
            yield "".join(data["image/svg+xml"])
        else:
            yield f"```text\n{''.join(data['text/plain']).rstrip()}\n```"


def split(markdown: str) -> Iterator[tuple[str, bool]]:
    """The parts of a page in order, and whether each is a fenced block."""
    end = 0
    for fence in FENCE.finditer(markdown):
        yield markdown[end : fence.start()], False
        yield fence[0], True
        end = fence.end()
    yield markdown[end:], False


def indented(text: str) -> str:
    """Text in which a step of a list is four spaces, not two."""
    return re.sub(r"^ +(?=\S)", lambda found: found[0] * 2, text, flags=re.MULTILINE)


def with_links(text: str, home: str, here: str) -> str:
    """Text whose links to files, as seen from the file `home`, lead from the page `here` to the files' pages."""

    def turned(link: re.Match[str]) -> str:
        place, anchor = place_of(posixpath.normpath(posixpath.join(posixpath.dirname(home), link[1])), link[2] or "")
        return posixpath.relpath(place, posixpath.dirname(here) or ".") + anchor

    return LINK.sub(turned, text)


def place_of(file: str, anchor: str) -> tuple[str, str]:
    """Where in the site a file of the repository is, and the anchor there."""
    if file in BESIDE:
        return BESIDE[file], anchor
    if match := re.fullmatch(r"examples/(\w+)\.py", file):
        return "examples.md", f"#{match[1]}py"
    return file.removeprefix("docs/").replace(".ipynb", ".md"), anchor

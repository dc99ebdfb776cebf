"""The size of the house, so that it can be watched: folders, functions, classes, lines, and who may import whom.

    python benchmarks/house.py

Counts the package with `passes`, `models` and `cli`; lines of a function or a class count without its docstring. Writes
its section of docs/architecture.md.
"""

from __future__ import annotations

import ast
import datetime
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from document import DOCS, table, write_section

ROOT = Path(__file__).parents[1]
ROOMS = ("graphsurgery", "passes", "models", "cli")
LONG = 40
"""Lines from which a function counts as long."""
RUN = 5
"""As many equal lines on end make two commands a pair that repeats."""


def files() -> list[Path]:
    """The Python files of the product; the links inside the package lead to what is counted by itself."""
    found = (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))
    return [path for path in found if not any(part.is_symlink() for part in path.parents)]


def entries() -> dict[str, int]:
    """How many files and folders lie in each folder; what Python asks for by name (`__init__.py`) does not count."""
    counts: dict[str, set[str]] = {}
    for path in files():
        parts = path.relative_to(ROOT).parts
        for depth in range(1, len(parts)):
            if parts[depth] not in ("__init__.py", "__main__.py"):
                counts.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    return {folder: len(names) for folder, names in counts.items()}


def spans(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> Iterator[tuple[int, str]]:
    """Every definition of a kind, with its lines without the docstring."""
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kind) and isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                first = node.body[0]
                if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and ast.get_docstring(node):
                    lines -= first.end_lineno - first.lineno + 1  # type: ignore[operator]
                yield lines, f"{path.relative_to(ROOT)}:{node.name}"


def shared_names() -> list[str]:
    """Public names that classes of two files have, each of them then a word with two senses."""
    homes: dict[str, set[str]] = {}
    for _, place in spans(ast.ClassDef):
        path, _, name = place.partition(":")
        homes.setdefault(name, set()).add(path)
    return [name for name, found in homes.items() if len(found) > 1 and not name.startswith("_")]


def said_by(path: Path) -> list[str]:
    """The lines of a file without indentation, docstrings, comments, and lines that are empty."""
    text = path.read_text(encoding="utf-8")
    quiet: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            quiet.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = ((number, line.partition("  #")[0].strip()) for number, line in enumerate(text.splitlines(), 1))
    return [line for number, line in lines if line and not line.startswith("#") and number not in quiet]


def repeating_commands() -> list[tuple[str, str]]:
    """Pairs of commands that say the same for `RUN` lines on end, as `said_by` counts them, signatures among them."""
    runs = {}
    for path in sorted((ROOT / "cli/commands").glob("*.py")):
        lines = said_by(path)
        runs[path.stem] = {tuple(lines[start : start + RUN]) for start in range(len(lines) - RUN + 1)}
    return [(one, other) for one, other in combinations(runs, 2) if runs[one] & runs[other]]


def broken_contracts() -> int:
    """How many contracts of import-linter do not hold."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return sum(line.endswith("BROKEN") for line in shown.splitlines())


def main() -> None:
    counts = entries()
    commands = counts.pop("cli/commands")
    fullest = max(counts, key=counts.__getitem__)
    functions, classes = sorted(spans(ast.FunctionDef)), sorted(spans(ast.ClassDef))
    long = [name for lines, name in functions if lines > LONG]
    rows = [
        ["Python files directly in `graphsurgery/`", str(len(list((ROOT / "graphsurgery").glob("*.py"))))],
        [f"entries in the fullest folder but that of commands ({commands})", f"{counts[fullest]} (`{fullest}/`)"],
        ["contracts of import-linter that are broken", str(broken_contracts())],
        [f"functions above {LONG} lines", str(len(long))],
        ["longest function", f"{functions[-1][0]} (`{functions[-1][1]}`)"],
        ["largest class", f"{classes[-1][0]} (`{classes[-1][1]}`)"],
        ["public names that classes of two files have", str(len(shared_names()))],
        [f"pairs of commands that repeat {RUN} lines", str(len(repeating_commands()))],
        ["lines of product", f"{sum(len(path.read_text(encoding='utf-8').splitlines()) for path in files()):,}"],
    ]
    today = datetime.date.today().isoformat()
    text = f"```\npython benchmarks/house.py\n```\n\nCounted {today}.\n\n{table(['mark', 'today'], rows)}"
    write_section("house", text, DOCS / "architecture.md")
    print("\n".join(": ".join(row) for row in rows))


if __name__ == "__main__":
    main()

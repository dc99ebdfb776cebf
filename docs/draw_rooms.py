"""Draw the packages and what they import: `python docs/draw_rooms.py` writes images/rooms.svg.

The imports are read from the code, those inside functions too; the order of the rooms is the one that `lint-imports` is
given in `pyproject.toml`. An arrow that follows from others is left out: what a room imports lies somewhere below it.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "graphsurgery"
INK, GREY, BOX, ARROW = "#222222", "#777777", "#eef3f8", "#0067a8"


def layers() -> list[list[str]]:
    """The rooms from the last to the first; those of one layer do not import each other."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(contract for contract in settings["contracts"] if contract["type"] == "layers")
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]


def files_of(room: str) -> list[Path]:
    """The Python files of a room, which is a folder or a file."""
    folder = PACKAGE / room
    return sorted(folder.resolve().rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def imports(file: Path) -> Iterator[str]:
    """The rooms that a file imports from."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [f"{node.module}.{node.names[0].name}"] if isinstance(node, ast.ImportFrom) else []
        yield from (name.split(".")[1] for name in names if name.startswith("graphsurgery."))


def idea(room: str) -> str:
    """What a room is for: the first line of its docstring, without its full stop."""
    folder = PACKAGE / room
    file = folder / "__init__.py" if folder.is_dir() else files_of(room)[0]
    line = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return line.rstrip(".")


def arrows(rooms: list[str]) -> list[tuple[str, str]]:
    """Who imports whom, but for what follows from the others."""
    direct = {
        room: {name for file in files_of(room) for name in imports(file) if name in rooms} - {room} for room in rooms
    }
    below: dict[str, set[str]] = {}
    for room in reversed(rooms):
        below[room] = direct[room].union(*(below.get(name, set()) for name in direct[room]))
    return [
        (r, name)
        for r in rooms
        for name in rooms
        if name in direct[r] and not any(name in below.get(o, set()) for o in direct[r])
    ]


def main() -> None:
    """Write the picture."""
    matplotlib.rcParams.update({"svg.hashsalt": "rooms", "font.family": "DejaVu Sans"})
    order = layers()
    places = {room: (1.9 * column, -row) for row, layer in enumerate(order) for column, room in enumerate(layer)}
    figure, axes = plt.subplots(figsize=(12, 8))
    for room, (x, y) in places.items():
        box = FancyBboxPatch((x - 0.8, y - 0.27), 1.6, 0.54, "round,pad=0.02,rounding_size=0.1", fc=BOX, ec=GREY)
        axes.add_patch(box)
        axes.text(x, y, room, ha="center", va="center", fontsize=10, fontweight="bold", color=INK)
    for room, name in arrows(list(places)):
        (x0, y0), (x1, y1) = places[room], places[name]
        far = x0 == x1 and y0 - y1 > 1
        start, end = ((x0 - 0.83, y0), (x1 - 0.83, y1)) if far else ((x0, y0 - 0.3), (x1, y1 + 0.3))
        curve = "arc3,rad=0.35" if far else "arc3"
        style = {"arrowstyle": "-|>", "mutation_scale": 10, "lw": 1.2, "color": ARROW, "shrinkA": 0, "shrinkB": 0}
        axes.add_patch(FancyArrowPatch(start, end, connectionstyle=curve, zorder=0, **style))
    for row, layer in enumerate(order):
        counts = [len(files_of(room)) for room in layer]
        lines = [
            f"{idea(room)}{f' ({count} files)' if count > 1 else ''}" for room, count in zip(layer, counts, strict=True)
        ]
        axes.text(3.0, -row, "\n".join(lines), va="center", fontsize=8.5, color=INK)
    axes.set_xlim(-1.6, 11)
    axes.set_ylim(-len(order) + 0.4, 0.6)
    axes.axis("off")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "images" / "rooms.svg", metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    main()

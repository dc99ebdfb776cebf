"""Draw the axis types of a residual block and of an attention block: `python docs/draw_axes.py` writes images/axes.svg.

The types are inferred, not written by hand: two tiny networks are traced, and every value is shown with its type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea, VPacker
from torch import Tensor, fx, nn

import graphsurgery as gs
from graphsurgery.axes.algebra import Axis, Dim, resolve
from graphsurgery.axes.types import TensorType

COLOURS = ("#0067a8", "#b84800", "#00795a", "#8a3c93")
GREY, INK = "#777777", "#222222"
MOVEMENT = ("getitem", "unflatten", "transpose", "flatten", "split")
Word = tuple[str, str, bool]


class Residual(nn.Module):
    """A stem, one residual block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(x + self.norm2(self.conv2(y)))
        return self.head(x.flatten(1))


class Attention(nn.Module):
    """An embedding, one attention block with 4 heads of size 6, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 3 * 24)
        self.proj = nn.Linear(24, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (part.unflatten(-1, (4, 6)).transpose(1, 2) for part in self.qkv(self.norm(x)).split(24, -1))
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return self.head(x)


class Drawing:
    """One network: boxes for operators, and under each the type of what it gives."""

    def __init__(self, graph: gs.ModelGraph, letters: Sequence[str]) -> None:
        self.graph, self.types = graph, graph.types
        self.names: dict[Dim, tuple[str, str]] = {
            space.dim: (letter, colour)
            for space, letter, colour in zip(graph.spaces, letters, COLOURS[: len(letters)], strict=True)
        }
        self.boxes = [n for n in graph.module.graph.nodes if n.op != "output" and not self._is_inner(n)]

    def _is_inner(self, node: fx.Node) -> bool:
        """Whether the box of the next node stands for this one too."""
        return _moves(node) and (_operator(node) == "split" or all(_moves(user) for user in node.users))

    def sources(self, node: fx.Node) -> Iterator[tuple[fx.Node, list[str]]]:
        """The boxes that a node reads, and the movements between them."""
        for source in node.all_input_nodes:
            if source in self.boxes:
                yield source, [_operator(node)]
            else:
                for further, between in self.sources(source):
                    yield further, [*between, _operator(node)]

    def places(self) -> dict[fx.Node, tuple[float, float]]:
        """Where the boxes stand: below what they read, side by side where they read the same."""
        depth: dict[fx.Node, int] = {}
        for node in self.boxes:
            depth[node] = max((depth[s] + 1 for s, _ in self.sources(node)), default=0)
        rows: dict[int, list[fx.Node]] = {}
        for node, row in depth.items():
            rows.setdefault(row, []).append(node)
        return {n: (i - (len(row) - 1) / 2, -float(y)) for y, row in rows.items() for i, n in enumerate(row)}

    def draw(self, axes: Axes, title: str, side: float) -> None:
        """Draw it all; `side` is where arrows pass that skip rows."""
        places = self.places()
        for node, (x, y) in places.items():
            for source, _ in self.sources(node):
                _arrow(axes, places[source], (x, y), list(self.words(node)), side)
        for node, (x, y) in places.items():
            box = VPacker(children=[_line(words) for words in self.words(node)], pad=0, sep=3, align="center")
            operator = node.op != "placeholder"
            style = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": "#bbbbbb" if operator else "none"}
            axes.add_artist(AnnotationBbox(box, (x, y), bboxprops=style, zorder=3))
        lowest = min(y for _, y in places.values())
        for row, words in enumerate(self.legend()):
            place = (-side, lowest - 0.85 - 0.28 * row)
            axes.add_artist(
                AnnotationBbox(_line(words), place, frameon=False, box_alignment=(0, 0.5), annotation_clip=False)
            )
        axes.set_title(title, fontsize=12, fontweight="bold", color=INK)
        axes.set_xlim(-side, side + 0.05)
        axes.set_ylim(-10.2, 0.4)
        axes.axis("off")

    def words(self, node: fx.Node) -> Iterator[list[Word]]:
        """What a box says: the operator, the types of its weight, the type of what it gives."""
        between = next((names for _, names in self.sources(node)), ["input"])
        name = str(node.target) if node.op == "call_module" else ", ".join(n for n in between if n != "getitem")
        yield [(name, INK, True)]
        weight = self.types.parameters.get(f"{node.target}.weight")
        if weight is not None:
            yield [("weight ", GREY, False), *self.tensor(weight.axes)]
        typed = self.types.types[node]
        assert isinstance(typed, TensorType)
        yield [("gives ", GREY, False), *self.tensor((None, *typed.axes[1:]))]

    def tensor(self, axes: Sequence[Axis | None]) -> Iterator[Word]:
        yield "[", GREY, False
        for index, axis in enumerate(axes):
            yield from [(", ", GREY, False)] if index else []
            yield from [("batch", GREY, False)] if axis is None else self.axis(axis)
        yield "]", GREY, False

    def axis(self, axis: Axis) -> Iterator[Word]:
        for index, term in enumerate(resolve(axis)):
            yield from [(" + ", INK, False)] if index else []
            for place, dim in enumerate(term):
                yield from [("·", INK, False)] if place else []
                letter, colour = self.names.get(dim, (str(dim.size), GREY))
                yield letter, colour, dim in self.names
            if not term:
                yield "1", GREY, False

    def legend(self) -> Iterator[list[Word]]:
        for space in self.graph.spaces:
            letter, colour = self.names[space.dim]
            inside = "" if space.outer else ", inside another space"
            mixed = f", mixed by {', '.join(m.partition(' at ')[0] for m in space.mixed)}" if space.mixed else ""
            where = f"written by {', '.join(space.writers)}; read by {', '.join(space.readers)}"
            yield [(letter, colour, True), (f" = {space.size}{inside}{mixed}: {where}", INK, False)]


def _operator(node: fx.Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return {"scaled_dot_product_attention": "attention"}.get(name, name)


def _moves(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and _operator(node) in MOVEMENT


def _line(words: Sequence[Word]) -> HPacker:
    def properties(colour: str, bold: bool) -> dict[str, Any]:
        return {"color": colour, "fontsize": 9, "fontweight": "bold" if bold else "normal"}

    parts: list[Artist] = [TextArea(text, textprops=properties(colour, bold)) for text, colour, bold in words]
    return HPacker(children=parts, pad=0, sep=0, align="baseline")


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], box: Sequence[Sequence[Word]], side: float
) -> None:
    """A straight arrow to a box in the next row; a path around what lies between."""
    style = {"arrowstyle": "-|>", "color": "#888888", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    if start[1] - end[1] > 1:
        letters = max(sum(len(text) for text, _, _ in line) for line in box)
        axes.plot([start[0], side, side], [start[1], start[1], end[1]], color="#888888", lw=1.2, zorder=1)
        axes.annotate("", end, (side, end[1]), arrowprops={**style, "shrinkB": 2.3 * letters}, zorder=1)
    else:
        axes.annotate("", (end[0], end[1] + 0.04 + 0.1 * len(box)), start, arrowprops=style, zorder=1)


def main() -> None:
    """Write the picture."""
    matplotlib.rcParams.update({"svg.hashsalt": "axes", "font.family": "DejaVu Sans"})
    residual = gs.trace(Residual(), torch.zeros(2, 3, 4, 4))
    attention = gs.trace(Attention(), torch.zeros(2, 9, 5))
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 9.8), gridspec_kw={"width_ratios": [1, 1.55]})
    Drawing(residual, "cm").draw(left, "Residual block", 1.1)
    Drawing(attention, "chdv").draw(right, "Attention block", 1.62)
    figure.tight_layout()
    figure.savefig(Path(__file__).parent / "images" / "axes.svg", metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    main()

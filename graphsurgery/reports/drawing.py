"""Drawings as inline SVG, in colors that follow the page from light to dark, whose bytes depend on nothing else."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphsurgery.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Role -> color in light mode, in dark mode. Figures are drawn in the light colors; each then becomes the CSS variable
# of its role. Hues after Okabe and Ito (told apart with any color vision), darkened until white text reads on them.
PALETTE = {
    "paper": ("#fdfdfc", "#16181c"),
    "ink": ("#1c1e22", "#e4e5e7"),
    "muted": ("#5f646d", "#9ba1ab"),
    "line": ("#dedfe2", "#33363d"),
    "good": ("#12704e", "#58c495"),
    "bad": ("#b3261e", "#ff8a80"),
    "on-hue": ("#fffffe", "#101114"),
    "hue-1": ("#0068a6", "#62b5ea"),
    "hue-2": ("#b34700", "#f2a155"),
    "hue-3": ("#00785a", "#4cc9a4"),
    "hue-4": ("#9c3f74", "#e39bc4"),
    "hue-5": ("#6b5b00", "#d8c75a"),
    "hue-6": ("#5a4fb0", "#b0a8f5"),
}
HUES = [name for name in PALETTE if name.startswith("hue-")]
WIDTH = 9.2  # inches; the page scales it to its own width


def light(role: str) -> str:
    """The color to draw a role in."""
    return PALETTE[role][0]


def hue_role(index: int) -> str:
    """The role that colors parent number `index`, from 0."""
    return HUES[index % len(HUES)]


@dataclass
class Drawing:
    """A figure to draw on; `svg` is filled when the block of `drawing` ends."""

    figure: Figure
    svg: str = ""


@contextmanager
def drawing(name: str, *, height: float, width: float = WIDTH) -> Iterator[Drawing]:
    """A figure of this size, in inches, to draw on within the block.

    The style, whatever the user's own is, and the ids inside depend on nothing but the drawing and `name`.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name in a script that the bundled font lacks: the browser has a font for it, we only need its width.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        matplotlib.rcdefaults()
        with matplotlib.rc_context(style(name)):
            figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.05))
            drawn = Drawing(figure)
            yield drawn
            file = io.StringIO()
            figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        drawn.svg = inline(file.getvalue(), name)


def style(name: str) -> dict[Any, Any]:
    """Matplotlib's parameters: quiet axes, transparent ground, text as text, no formulas in names."""
    ink, muted, rule = light("ink"), light("muted"), light("line")
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "text.color": ink,
        "font.size": 9,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": rule,
        "axes.labelcolor": muted,
        "axes.titlesize": 9,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.formatter.use_mathtext": False,
        "grid.color": rule,
        "grid.linewidth": 0.6,
        "xtick.color": rule,
        "ytick.color": rule,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "ytick.left": False,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
        "xtick.major.size": 3,
        "legend.frameon": False,
        "legend.labelcolor": muted,
        "lines.solid_capstyle": "round",
    }


def inline(svg: str, name: str) -> str:
    """An SVG file as an element of the page: no header, no namespaces, own ids, colors by role."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Text holds no angle brackets, so this finds the tags, and what a name says stays as it is.
    svg = re.sub(r"<[^<>]+>", lambda tag: inline_tag(tag[0], name), svg)
    return re.sub(r">\s*\n\s*<", "><", svg).strip()


def inline_tag(tag: str, name: str) -> str:
    """One tag of the page's SVG."""
    tag = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", tag)
    tag = tag.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    if tag.startswith("<svg"):
        tag = re.sub(r'\s(width|height|version)="[^"]*"', "", tag)
    for role, (color, _) in PALETTE.items():
        tag = tag.replace(color, f"var(--{role})")
    return tag


def with_titles(svg: str, name: str, titles: Mapping[str, str]) -> str:
    """Tooltips for the groups with these ids."""
    for gid, title in titles.items():
        opening = f'<g id="{name}-{gid}">'
        svg = svg.replace(opening, f"{opening}<title>{html.escape(printable(title))}</title>")
    return svg


def shortened(text: str, limit: int) -> str:
    """The text on one line of at most `limit` characters, its middle left out where it is longer."""
    text = printable(text)
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[: limit - 1 - half]}…{text[-half:]}"

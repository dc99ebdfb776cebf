"""Colors that can be told from each other, and from the page, on light and on dark ground."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

_LIGHTNESS, _LIGHTER = (0.40, 0.51, 0.62, 0.73), 0.13
"""On light ground, and how much more it is on dark ground."""
_CHROMA = (0.21, 0.18, 0.15, 0.12, 0.09)
_HUES = 24


class Color(NamedTuple):
    """A color on light ground, and the same on dark ground, as `#rrggbb`."""

    light: str
    dark: str


def colors(count: int) -> list[Color]:
    """So many colors, each as far from those before it as can be; what comes later looks more alike.

    Distances are those of OKLab, in which equal ones look equal. Where there are no more colors they come again.

    Source: Ottosson, "A perceptual color space for image processing", 2020.
    """
    order = _order()
    return [order[number % len(order)] for number in range(count)]


@cache
def _order() -> list[Color]:
    """All candidates, each the farthest from those before it and from grey."""
    labs = {place: _lab(*place) for place in _candidates()}
    near = {place: math.hypot(a, b) for place, (_, a, b) in labs.items()}
    chosen = []
    while near:
        place = max(near, key=lambda one: near[one])
        chosen.append(_color(place))
        del near[place]
        near = {other: min(far, math.dist(labs[other], labs[place])) for other, far in near.items()}
    return chosen


def _candidates() -> Iterator[tuple[float, float, float]]:
    """Lightness, chroma and hue: the strongest colors that a screen shows on both grounds."""
    for lightness in _LIGHTNESS:
        for number in range(_HUES):
            hue = 360 * number / _HUES
            levels = (lightness, lightness + _LIGHTER)
            shown = (c for c in _CHROMA if all(_is_shown(_rgb(*_lab(level, c, hue))) for level in levels))
            if (chroma := next(shown, None)) is not None:
                yield lightness, chroma, hue


def _color(place: tuple[float, float, float]) -> Color:
    lightness, chroma, hue = place
    return Color(*(_hexadecimal(_rgb(*_lab(level, chroma, hue))) for level in (lightness, lightness + _LIGHTER)))


def _lab(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    return lightness, chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))


def _rgb(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    """Linear sRGB of a color in OKLab; outside of 0 to 1 where no screen shows it."""
    x = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    y = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    z = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * x - 3.3077115913 * y + 0.2309699292 * z,
        -1.2684380046 * x + 2.6097574011 * y - 0.3413193965 * z,
        -0.0041960863 * x - 0.7034186147 * y + 1.7076147010 * z,
    )


def _is_shown(rgb: Sequence[float]) -> bool:
    return all(-0.002 <= part <= 1.002 for part in rgb)


def _hexadecimal(rgb: Sequence[float]) -> str:
    parts = [min(1.0, max(0.0, part)) for part in rgb]
    encoded = [12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055 for part in parts]
    return "#" + "".join(f"{round(255 * part):02x}" for part in encoded)

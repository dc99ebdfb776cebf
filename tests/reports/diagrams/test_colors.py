"""Colors differ from each other, from grey and from the page, on both grounds."""

from __future__ import annotations

import itertools
import math

import pytest

from graphsurgery.reports.diagrams.colors import colors
from graphsurgery.reports.drawing import PALETTE


def lab(color):
    """A color in OKLab, by the matrices of Ottosson."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    x = math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b)
    y = math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b)
    z = math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b)
    return (
        0.2104542553 * x + 0.7936177850 * y - 0.0040720468 * z,
        1.9779984951 * x - 2.4285922050 * y + 0.4505937099 * z,
        0.0259040371 * x + 0.7827717662 * y - 0.8086757660 * z,
    )


@pytest.mark.parametrize("ground", [0, 1])
@pytest.mark.parametrize(("count", "apart"), [(8, 0.13), (24, 0.08), (48, 0.035)])
def test_they_can_be_told_apart(count, apart, ground):
    found = [lab(color[ground]) for color in colors(count)]
    assert min(math.dist(a, b) for a, b in itertools.combinations(found, 2)) > apart
    others = [lab(PALETTE[role][ground]) for role in ("paper", "muted", "line")]
    assert min(math.dist(a, b) for a in found for b in others) > 0.07


def test_there_are_always_enough():
    assert len(colors(500)) == 500
    assert colors(3) == colors(500)[:3]
    assert colors(0) == []

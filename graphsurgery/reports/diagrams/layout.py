"""Places for the boxes of a picture: layers by longest path from top to bottom, few crossings, straight lines."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from graphsurgery.errors import SurgeryError

_SWEEPS = 8
_APART = 28.0
_BELOW = 30.0
_THREAD = 10.0
_MAIN = 16.0


@dataclass(frozen=True)
class BoxSize:
    """Width and height of a box, in pixels."""

    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """Where everything is, in pixels from the upper left corner.

    Attributes:
        places: the middle of the upper side of each box.
        routes: the points through which each edge goes, from the lower side of its source to the upper side of its
            target; between two points of the same x it is a straight line.
        width, height: of the whole picture.
    """

    places: Mapping[str, tuple[float, float]]
    routes: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]
    width: float
    height: float


def lay_out(sizes: Mapping[str, BoxSize], edges: Sequence[tuple[str, str]]) -> Layout:
    """Place boxes so that all edges go down.

    An edge that skips layers gets a place of its own in each of them, shared by all long edges of its source, so that
    it goes around boxes. Within a layer boxes are sorted by their neighbours, and moved as near to them as the order
    allows.

    Args:
        sizes: the boxes; of those that no edge orders, the first comes first.
        edges: pairs of boxes; the same pair may come again.

    Raises:
        SurgeryError: the edges form a circle, or name a box that there is not.
    """
    unknown = next((name for edge in edges for name in edge if name not in sizes), None)
    if unknown is not None:
        raise SurgeryError(f"picture: an edge names {unknown}, which is no box")
    graph = nx.DiGraph()
    graph.add_nodes_from(sizes)
    graph.add_edges_from(edges)
    try:
        levels = _levels(graph)
    except nx.NetworkXUnfeasible as cause:
        raise SurgeryError("picture: the edges form a circle") from cause
    threads = _threads(graph, levels)
    widths = {name: size.width for name, size in sizes.items()} | {thread: _THREAD for _, thread in threads.values()}
    chain = _chain(graph, levels, threads)
    rows: list[list[str]] = [[] for _ in range(1 + max(levels.values(), default=0))]
    for name in sizes:
        rows[levels[name]].append(name)
    for level, thread in threads.values():
        rows[level].append(thread)
    _sort(rows, chain)
    x = _positions(rows, chain, widths)
    return _placed(graph, levels, sizes, rows, x)


def _levels(graph: nx.DiGraph) -> dict[str, int]:
    """The longest path to every box; what nothing leads to stands just above what it leads to."""
    levels: dict[str, int] = {}
    order = list(nx.topological_sort(graph))
    for name in order:
        levels[name] = max((1 + levels[before] for before in graph.predecessors(name)), default=0)
    for name in reversed(order):
        if not graph.in_degree(name) and graph.out_degree(name):
            levels[name] = max(levels[name], min(levels[after] for after in graph.successors(name)) - 1)
    return levels


def _threads(graph: nx.DiGraph, levels: Mapping[str, int]) -> dict[tuple[str, int], tuple[int, str]]:
    """The places of long edges by source and level: that level, and a name."""
    found = {}
    for name in graph:
        last = max((levels[after] for after in graph.successors(name)), default=0)
        for level in range(levels[name] + 1, last):
            found[name, level] = (level, f"{name}\0{level}")
    return found


def _chain(
    graph: nx.DiGraph, levels: Mapping[str, int], threads: Mapping[tuple[str, int], tuple[int, str]]
) -> list[tuple[str, str]]:
    """Edges between neighbouring levels, along the threads."""
    pairs = {}
    for source, target in graph.edges:
        stops = [source, *(threads[source, level][1] for level in range(levels[source] + 1, levels[target])), target]
        pairs.update(dict.fromkeys(itertools.pairwise(stops)))
    return list(pairs)


def _sort(rows: list[list[str]], chain: Sequence[tuple[str, str]]) -> None:
    """Order each row by the mean place of its neighbours above, then below, several times."""
    above, below = _neighbours(chain)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        sides, walk = (above, rows[1:]) if down else (below, rows[-2::-1])
        place = {name: i / max(1, len(row) - 1) for row in rows for i, name in enumerate(row)}
        for row in walk:
            means = {n: sum(place[m] for m in sides[n]) / len(sides[n]) if sides[n] else place[n] for n in row}
            row.sort(key=means.__getitem__)
            place.update({name: i / max(1, len(row) - 1) if len(row) > 1 else 0.5 for i, name in enumerate(row)})


def _neighbours(chain: Sequence[tuple[str, str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    above, below = defaultdict(list), defaultdict(list)
    for source, target in chain:
        above[target].append(source)
        below[source].append(target)
    return above, below


def _positions(
    rows: Sequence[Sequence[str]], chain: Sequence[tuple[str, str]], widths: Mapping[str, float]
) -> dict[str, float]:
    """The middle of every box: as near to the mean of its neighbours as order and distances allow.

    Boxes that nothing leads to, such as weights, give way to those on the way from input to output.
    """
    above, below = _neighbours(chain)
    pulls = {name: _MAIN if above[name] else 1.0 for row in rows for name in row}
    x: dict[str, float] = {}
    for row in rows:
        x.update(_spaced(row, dict.fromkeys(row, 0.0), widths, pulls))
    for sweep in range(2 * _SWEEPS):
        down = sweep % 2 == 0
        sides = above if down else below
        for row in rows if down else reversed(rows):
            wished = {n: _mean(x, sides[n], pulls) if sides[n] else x[n] for n in row}
            x.update(_spaced(row, wished, widths, pulls))
    return x


def _mean(x: Mapping[str, float], names: Sequence[str], pulls: Mapping[str, float]) -> float:
    return sum(pulls[name] * x[name] for name in names) / sum(pulls[name] for name in names)


def _spaced(
    row: Sequence[str], wished: Mapping[str, float], widths: Mapping[str, float], pulls: Mapping[str, float]
) -> dict[str, float]:
    """The places nearest to the wished ones (least squares, weighted by the pulls) that keep order and distances.

    Less the widths that lie before it, every place must only not be smaller than the one before: isotonic regression,
    by pooling neighbours that violate the order.
    """
    offsets, offset = [], 0.0
    for i, name in enumerate(row):
        offset += (widths[row[i - 1]] + widths[name]) / 2 + _APART if i else 0.0
        offsets.append(offset)
    pools: list[tuple[float, float, int]] = []
    for name, before in zip(row, offsets, strict=True):
        pools.append((wished[name] - before, pulls[name], 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m, count), (b, n, more) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n, count + more)]
    means = [mean for mean, _, count in pools for _ in range(count)]
    return {name: mean + before for name, mean, before in zip(row, means, offsets, strict=True)}


def _placed(
    graph: nx.DiGraph,
    levels: Mapping[str, int],
    sizes: Mapping[str, BoxSize],
    rows: Sequence[Sequence[str]],
    x: Mapping[str, float],
) -> Layout:
    tops, heights, y = [], [], 0.0
    for row in rows:
        heights.append(max((sizes[name].height for name in row if name in sizes), default=0.0))
        tops.append(y)
        y += heights[-1] + _BELOW
    extents = [(x[name] - size.width / 2, x[name] + size.width / 2) for name, size in sizes.items()]
    extents += [(x[name], x[name]) for row in rows for name in row if name not in sizes]
    left = min((low for low, _ in extents), default=0.0)
    right = max((high for _, high in extents), default=0.0)
    places = {name: (x[name] - left, tops[levels[name]]) for name in sizes}
    routes = {}
    for source, target in graph.edges:
        across, top = places[source]
        points = [(across, top + sizes[source].height), (across, top + heights[levels[source]])]
        for level in range(levels[source] + 1, levels[target]):
            at = x[f"{source}\0{level}"] - left
            points += [(at, tops[level]), (at, tops[level] + heights[level])]
        routes[source, target] = (*points, places[target])
    return Layout(places, routes, right - left, max(0.0, y - _BELOW))

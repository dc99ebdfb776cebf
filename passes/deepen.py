"""Deepen: more layers, which give what they are given."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, fx

from graphsurgery.axes.maps import Edit
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.network.copying import deep_copy
from graphsurgery.network.outputs.modes import evaluating
from graphsurgery.network.outputs.randomness import seeded
from graphsurgery.network.paths import place_of
from graphsurgery.surgery.editor import put_at
from graphsurgery.surgery.growth.identity_layers import BATCH_NORMS, be_identity, be_zero, undo_norm
from graphsurgery.surgery.growth.places import Place, find_place, proposed
from graphsurgery.surgery.growth.repeats import CALIBRATE, IDENTITY, Region
from graphsurgery.surgery.merging.matching import kind_of
from graphsurgery.surgery.remapping.remap import follow, rebuild

AUTO = "auto"
BLOCKS = ("auto", "copy", "layer", "residual")


def deepen(
    graph: ModelGraph,
    after: str | Sequence[str] = AUTO,
    count: int = 1,
    *,
    block: str = "auto",
    examples: Sequence[Tensor] | None = None,
    seed: int = 0,
) -> ModelGraph:
    """Insert layers that give what they are given; the outputs are the same to rounding.

    What stands before a place is repeated where a repeat can be the identity: a residual or transformer block whose
    last layer becomes zero, a convolution or linear layer that becomes the identity in front of an activation that has
    been applied already (ReLU). Elsewhere a new layer comes in: the identity behind such an activation, a residual pair
    of layers whose second is zero behind any other. In training mode this holds too, but for dropout and BatchNorms:
    those in front of which a value must arrive unchanged undo their statistics in evaluation only.

    Args:
        graph: typed network; it is not modified.
        after: where: names of nodes, modules or stages (`layer2`, `encoder.layers.encoder_layer_3`), behind whose last
            layer the new ones come; `auto` is every place that `places` proposes.
        count: how many are inserted at each place.
        block: `auto`; or only `copy`, the repeat of what is there; `layer`, an identity layer; `residual`, a pair.
        examples: inputs `[batch, ...]`, one for each input of the network, to give such BatchNorms the statistics of
            what arrives; else they get mean 0 and variance 1.
        seed: of the values of new layers that are neither zero nor the identity.

    Returns:
        A network with the same names, and new ones that end in `_deeper1`, `_deeper2`, ...

    Raises:
        SurgeryError: an unknown place or block, a place where no identity exists, or no place at all.

    Source: Chen, Goodfellow, Shlens, "Net2Net", arXiv:1511.05641, section 2 (deepening).
    """
    if not isinstance(count, int) or count < 1:
        raise SurgeryError(f"deepen: count is {count}, expected a whole number from 1")
    if block not in BLOCKS:
        raise SurgeryError(f"deepen: block is {block!r}; choose from {', '.join(BLOCKS)}")
    names = [after] if isinstance(after, str) else list(after)
    if not names or (AUTO in names and len(names) > 1):
        raise SurgeryError(f"deepen: after is {names}; name places, or {AUTO} alone")
    new = rebuild(graph, Edit({}), lambda _, tensor: tensor.clone())
    found = proposed(new) if names == [AUTO] else [find_place(new, name, block) for name in names]
    if not found:
        raise SurgeryError("deepen: no part of this network can be repeated as the identity; name a place with after")
    inserter = _Inserter(new.module, seed)
    for place in found:
        end = place.exit
        for _ in range(count):
            end = inserter.insert(place, end)
    new.module.graph.lint()
    new.module.recompile()
    if examples is not None and inserter.undone:
        _calibrate(new.module, inserter.undone, examples)
    record = {
        "pass": "deepen",
        "places": {place.name: place.kind for place in found},
        "count": count,
        "calibrated": len(inserter.undone) if examples is not None else 0,
    }
    deep = ModelGraph(new.module, new.inputs, (*graph.lineage, record), graph.open_outputs)
    return follow(graph, deep, Edit({}))


class _Inserter:
    """Puts parts into a graph, in place.

    Attributes:
        undone: the paths of the BatchNorms that undo themselves.
    """

    def __init__(self, module: fx.GraphModule, seed: int) -> None:
        self.module = module
        self.seed = seed
        self.undone: list[str] = []

    def insert(self, place: Place, end: fx.Node) -> fx.Node:
        """Put one more behind a node; whoever read that node reads the new end."""
        readers = list(end.users)
        new = self._layers(place, end) if place.region is None else self._repeat(place.region, place.unit, end)
        for reader in readers:
            reader.replace_input_with(end, new)
        return new

    def _repeat(self, part: Region, unit: str, end: fx.Node) -> fx.Node:
        """A copy of a part behind a node."""
        names = self._copies(part.paths(), unit)
        copies: dict[fx.Node, fx.Node] = {part.entry: end}
        graph = self.module.graph
        anchor = end
        for node in part.nodes:
            with graph.inserting_after(anchor):
                copied = graph.node_copy(node, lambda source: copies.get(source, source))
            if node.op in ("call_module", "get_attr"):
                copied.target = names[str(node.target)]
            copies[node] = anchor = copied
        for change in part.changes:
            self._change(names[change.path], change.kind)
        return copies[part.exit]

    def _copies(self, paths: Iterable[str], unit: str) -> dict[str, str]:
        """Copies of modules and parameters under new paths."""
        paths = list(paths)
        suffix = self._free(unit, *paths)
        names = {path: _renamed(path, unit, suffix) for path in paths}
        for path in paths:
            owner, _, name = path.rpartition(".")
            copied = deep_copy(getattr(self.module.get_submodule(owner), name))
            if getattr(copied, "inplace", False):
                # What goes in may be needed behind it: in the repeat it is a value of another part.
                copied.inplace = False
            put_at(self.module, names[path], copied)
        return names

    def _free(self, *paths: str) -> str:
        """The first suffix with which all paths are new."""
        taken = {name for name, _ in self.module.named_modules()}
        taken |= {name for name, _ in (*self.module.named_parameters(), *self.module.named_buffers())}
        suffixes = (f"_deeper{n}" for n in itertools.count(1))
        return next(suffix for suffix in suffixes if taken.isdisjoint(path + suffix for path in paths))

    def _change(self, path: str, kind: str) -> None:
        """Make a repeated layer or parameter what its repeat has to be."""
        owner, _, name = path.rpartition(".")
        part = getattr(self.module.get_submodule(owner), name)
        if kind == CALIBRATE:
            undo_norm(part)
            self.undone.append(path)
        elif kind == IDENTITY:
            be_identity(part)
        else:
            be_zero(part)

    def _layers(self, place: Place, end: fx.Node) -> fx.Node:
        """New layers behind a node, as `places` has made them."""
        base = place_of(place.exit)
        suffix = self._free(base)
        reference = next((p for p in self.module.parameters() if p.is_floating_point()), torch.empty(0))
        graph, anchor = self.module.graph, end
        with seeded(self.seed):
            layers = place.make()
        self.seed += 1
        for name, layer in layers.items():
            path = f"{base}{suffix}.{name}"
            layer.to(reference).train(self.module.training)
            put_at(self.module, path, layer)
            with graph.inserting_after(anchor):
                anchor = graph.call_module(path, (anchor,))
            anchor.meta["value"] = end.meta["value"]
            if isinstance(layer, BATCH_NORMS):
                # In the precision of the network.
                undo_norm(layer)
                self.undone.append(path)
        if place.kind == "residual":
            with graph.inserting_after(anchor):
                anchor = graph.call_function(torch.add, (end, anchor))
            anchor.meta["value"] = end.meta["value"]
        return anchor


def _renamed(path: str, unit: str, suffix: str) -> str:
    """`layer2.1.conv1` in the unit `layer2.1` becomes `layer2.1_deeper1.conv1`; elsewhere a path ends in the suffix."""
    if path.startswith(f"{unit}."):
        return unit + suffix + path[len(unit) :]
    return path + suffix


def _calibrate(module: fx.GraphModule, norms: Sequence[str], examples: Sequence[Tensor]) -> None:
    """Give inserted BatchNorms the statistics of what arrives at them, and what undoes these, in place."""
    arrived: dict[str, Tensor] = {}
    hooks = [
        module.get_submodule(path).register_forward_pre_hook(
            lambda _, given, path=path: arrived.__setitem__(path, given[0].detach())
        )
        for path in norms
    ]
    try:
        with evaluating(module), torch.no_grad():
            module(*examples)
    except (RuntimeError, TypeError, ValueError) as cause:
        raise SurgeryError(f"deepen: the network does not take these examples: {one_line(cause)}") from cause
    finally:
        for hook in hooks:
            hook.remove()
    for path, value in arrived.items():
        over = [axis for axis in range(value.dim()) if axis != 1]
        undo_norm(module.get_submodule(path), value.mean(over), value.var(over, unbiased=False))


def deepen_like(graph: ModelGraph, like: ModelGraph) -> ModelGraph:
    """A network with parts repeated until it has the topology of a deeper one of its family; the outputs stay.

    The two are compared node by node. Where they part, the part before that point is repeated, or the identity layer
    inserted, that brings them furthest together. A stage of which nothing can be repeated stays as deep as it is.

    Args:
        graph: typed network; it is not modified.
        like: a network of the same family with more blocks; widths do not matter.

    Raises:
        SurgeryError: repeating parts does not lead from one to the other.
    """
    pattern = _kinds(like)
    alike = _alike(_kinds(graph), pattern)
    while len(_kinds(graph)) < len(pattern):
        best: tuple[int, ModelGraph] | None = None
        known = list(graph.module.graph.nodes)
        for place in proposed(graph, every=True):
            if known.index(place.exit if place.region is None else place.region.entry) > alike:
                continue
            candidate = deepen(graph, place.name, block=place.kind)
            reached = _alike(_kinds(candidate), pattern)
            if reached > alike and (best is None or reached > best[0]):
                best = reached, candidate
        if best is None:
            where = place_of(known[min(alike, len(known) - 1)])
            raise SurgeryError(f"deepen: no repeat of a part brings the network closer to the deeper one at {where}")
        alike, graph = best
    return graph


def as_deep(graphs: Sequence[ModelGraph]) -> list[ModelGraph]:
    """These networks, the shallower ones deepened to the topology of the deepest; see `deepen_like`.

    A network that cannot become like the deepest stays as it is; whoever matches them says how they differ.
    """
    deepest = max(graphs, key=lambda graph: len(graph.module.graph.nodes))
    size = len(deepest.module.graph.nodes)
    deep = []
    for graph in graphs:
        try:
            deep.append(graph if len(graph.module.graph.nodes) == size else deepen_like(graph, deepest))
        except SurgeryError:
            deep.append(graph)
    return deep


def _kinds(graph: ModelGraph) -> list[str]:
    return [kind_of(graph.module, node) for node in graph.module.graph.nodes]


def _alike(kinds: Sequence[str], pattern: Sequence[str]) -> int:
    """How many nodes two networks have in common from the start."""
    pairs: Iterator[tuple[str, str]] = zip(kinds, pattern, strict=False)
    count = 0
    for a, b in pairs:
        if a != b:
            break
        count += 1
    return count

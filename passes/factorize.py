"""Factorize: a layer becomes two with few channels between them, and back."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from graphsurgery.axes.maps import Edit
from graphsurgery.errors import SurgeryError, near_names
from graphsurgery.graph import ModelGraph
from graphsurgery.network.paths import put
from graphsurgery.progress import phase
from graphsurgery.surgery.channels.cost import cost, macs_by_node
from graphsurgery.surgery.channels.targets import Target, parse_target
from graphsurgery.surgery.equivalents.products import refreshed, with_layers
from graphsurgery.surgery.factors import Matrix, are_factors, matrix_of, merged
from graphsurgery.surgery.gates import has_gates
from graphsurgery.surgery.growth.identity_layers import CONVOLUTIONS
from graphsurgery.surgery.remapping.remap import rebuild

HOWS = ("svd", "random")
SHAPES = ("channel", "spatial")
REDUCE, EXPAND = "reduce", "expand"
_STEPS = 40


@dataclass(frozen=True)
class _Plan:
    """What becomes of one layer.

    Attributes:
        path: of the layer.
        matrix: its weights as a matrix.
        rank: how many channels stand between the two.
    """

    path: str
    matrix: Matrix
    rank: int

    @property
    def saves(self) -> bool:
        """Whether the two have fewer weights than the one."""
        return self.rank * (self.matrix.rows + self.matrix.columns) < self.matrix.rows * self.matrix.columns


@phase("factorizing layers")
def factorize(
    graph: ModelGraph,
    layers: str | Sequence[str] | None = None,
    *,
    rank: int | float | Mapping[str, int | float] | None = None,
    energy: float | None = None,
    target: Target | str | None = None,
    how: str = "svd",
    shape: str = "channel",
    force: bool = False,
    seed: int = 0,
) -> ModelGraph:
    """Replace layers by two with a linear bottleneck between them; at full rank the outputs are the same.

    `W [out, in]` becomes `U [out, k] V [k, in]`: a linear layer two linear layers, a convolution one with its kernel to
    k channels and one of 1 (`channel`), or one down and one along the kernel (`spatial`, two axes only). A product with
    a matrix that is a parameter (`x @ W`, `torch.addmm`, `F.linear`) is a linear layer too. Below full
    rank it is the best approximation of the weights; a fine-tuning brings back what that does to the outputs.

    Args:
        graph: typed network; it is not modified.
        layers: paths of linear layers and convolutions; by default all whose two factors have fewer weights.
        rank: how many channels k stand between (int), or a share of the full rank (float), for all layers or by path.
        energy: instead, the smallest ranks that keep this share of the squared singular values of every layer.
        target: instead, what the network may cost at most, `params=0.5x`, `macs=300M` or `size=4MB`: the energy, the
            same in all layers, is searched on the real count.
        how: `svd`, the truncated singular value decomposition, whose factors share the singular values evenly; or
            `random`, fresh factors of the same spread, to be trained from scratch.
        shape: `channel` or `spatial`, for convolutions.
        force: also where the factors have as many weights as the layer, or more.
        seed: for `random`.

    Returns:
        A network in which the layer `fc` is `fc.reduce` and `fc.expand`; its lineage says what was skipped, and why.

    Raises:
        SurgeryError: an unknown layer or option, a rank above the full one, an energy outside (0, 1], a target that
            cannot be reached, or nothing to factorize.

    Source: the linear bottleneck of Ba & Caruana, "Do deep nets really need to be deep?", arXiv:1312.6184, section 3;
    Jaderberg, Vedaldi, Zisserman, "Speeding up convolutional neural networks with low rank expansions", 2014.
    """
    _check(graph, rank, energy, target, how, shape)
    layers = [layers] if isinstance(layers, str) else layers
    if layers is not None and not layers:
        raise SurgeryError("factorize: layers names none; leave it out for all")
    graph.check_values("factorize")
    written = with_layers(graph)
    matrices, skipped = _matrices(written, layers, shape)
    if target is not None:
        plans = _meet(written, matrices, parse_target(target) if isinstance(target, str) else target)
    else:
        plans = _ranked(matrices, rank, energy, force=force)
    plans = _smaller(plans, skipped, force=force)
    generator = torch.Generator().manual_seed(seed)
    ranks = {plan.path: [plan.matrix.full, plan.rank] for plan in plans}
    record = {"pass": "factorize", "how": how, "shape": shape, "ranks": ranks, "skipped": skipped}
    pairs = {}
    for plan in plans:
        with torch.random.fork_rng(devices=[]):
            pairs[plan.path] = plan.matrix.split(plan.rank, None if how == "svd" else generator)
    replaced = {f"{path}.weight" for path in pairs}
    base = with_layers(graph, list(pairs))
    new = rebuild(base, Edit({}), lambda typed, t: t if typed.name in replaced else t.clone(), record)
    for path, pair in pairs.items():
        _replace(new.module, path, dict(zip((REDUCE, EXPAND), pair, strict=True)))
    return refreshed(graph, new)


def _ranked(
    matrices: Mapping[str, Matrix],
    rank: int | float | Mapping[str, int | float] | None,
    energy: float | None,
    *,
    force: bool,
) -> list[_Plan]:
    """Every layer at the rank that is asked for, or at that of the energy."""
    unknown = [path for path in rank if path not in matrices] if isinstance(rank, Mapping) else []
    if unknown:
        raise SurgeryError(
            f"factorize: rank names {unknown[0]}, which is not factorized; {near_names(unknown[0], matrices)}"
        )
    return [_Plan(path, m, _rank_of(path, m, rank, energy, force=force)) for path, m in matrices.items()]


def _smaller(plans: Sequence[_Plan], skipped: dict[str, str], *, force: bool) -> list[_Plan]:
    """The plans that save weights; why the others do not is added to what was skipped."""
    for plan in plans:
        if not plan.saves and not force:
            weights = plan.matrix.rows * plan.matrix.columns
            skipped[plan.path] = f"rank {plan.rank} saves nothing of its {weights:,} weights"
    found = [plan for plan in plans if plan.path not in skipped]
    if not found:
        raise SurgeryError(f"factorize: no layer becomes smaller; {_first(skipped)}")
    return found


def factorizable(graph: ModelGraph, shape: str = "channel") -> list[str]:
    """The paths of all layers that can become two."""
    return list(_matrices(with_layers(graph), None, shape)[0])


def unfactorize(graph: ModelGraph, layers: Sequence[str] | None = None) -> ModelGraph:
    """Multiply the two factors of layers into one again; the outputs are the same to rounding.

    Args:
        graph: typed network; it is not modified.
        layers: paths of factorized layers; by default all.

    Raises:
        SurgeryError: a layer is not factorized, or none is.
    """
    if has_gates(graph):
        raise SurgeryError("unfactorize: this network has gates; fold or compress it first")
    known = _factorized(graph.module)
    chosen = list(known) if layers is None else list(layers)
    unknown = [path for path in chosen if path not in known]
    if unknown:
        raise SurgeryError(f"unfactorize: {unknown[0]} is not factorized; {near_names(unknown[0], known)}")
    if not chosen:
        raise SurgeryError("unfactorize: no layer of this network is factorized")
    new = rebuild(graph, Edit({}), lambda _, tensor: tensor.clone(), {"pass": "unfactorize", "layers": chosen})
    with torch.random.fork_rng(devices=[]):  # new layers draw weights before they are given theirs
        for path in chosen:
            pair = new.module.get_submodule(path)
            _replace(new.module, path, merged(pair.get_submodule(REDUCE), pair.get_submodule(EXPAND)))
    return refreshed(graph, new)


def _check(graph: ModelGraph, rank: Any, energy: float | None, target: Any, how: str, shape: str) -> None:
    if has_gates(graph):
        raise SurgeryError("factorize: this network has gates; fold or compress it first")
    if sum(given is not None for given in (rank, energy, target)) != 1:
        raise SurgeryError("factorize: give one of rank, energy and target")
    for name, value, known in (("how", how, HOWS), ("shape", shape, SHAPES)):
        if value not in known:
            raise SurgeryError(f"factorize: {name} is {value!r}; choose from {', '.join(known)}")
    if energy is not None and not 0 < energy <= 1:
        raise SurgeryError(f"factorize: energy is {energy:g}, expected a share above 0 and at most 1")


def _matrices(graph: ModelGraph, layers: Sequence[str] | None, shape: str) -> tuple[dict[str, Matrix], dict[str, str]]:
    """The weights of these layers as matrices, and why others have none."""
    found: dict[str, Matrix] = {}
    skipped: dict[str, str] = {}
    modules = {str(n.target): n for n in graph.module.graph.nodes if n.op == "call_module"}
    for path in modules if layers is None else layers:
        if path not in modules:
            raise SurgeryError(f"factorize: {path} is not a layer of this model; {near_names(path, modules)}")
        shared = _shared(graph, path)
        matrix = "its weights stand elsewhere too" if shared else matrix_of(graph.module.get_submodule(path), shape)
        if isinstance(matrix, Matrix):
            found[path] = matrix
        elif layers is not None:
            raise SurgeryError(f"factorize: {path} cannot be factorized: {matrix}")
        elif isinstance(graph.module.get_submodule(path), (nn.Linear, *CONVOLUTIONS)):
            skipped[path] = matrix
    return found, skipped


def _shared(graph: ModelGraph, path: str) -> bool:
    """Whether the weights of a layer have another name, or are read by themselves."""
    tensors = graph.tensors()
    weight = tensors.get(f"{path}.weight")
    names = [name for name, tensor in tensors.items() if tensor is weight]
    return len(names) > 1 or any(n.op == "get_attr" and n.target in names for n in graph.module.graph.nodes)


def _rank_of(path: str, matrix: Matrix, rank: Any, energy: float | None, *, force: bool) -> int:
    """How many channels a layer keeps between its factors."""
    if energy is not None:
        return matrix.rank_for(energy)
    asked = rank[path] if isinstance(rank, Mapping) and path in rank else rank
    if isinstance(asked, Mapping):
        return matrix.full
    if isinstance(asked, float):
        if not 0 < asked <= 1:
            raise SurgeryError(f"factorize: rank of {path} is {asked:g}, expected a share above 0 and at most 1")
        return max(1, round(asked * matrix.full))
    named = isinstance(rank, Mapping) or force
    if asked < 1 or (named and asked > matrix.full):
        raise SurgeryError(f"factorize: rank of {path} is {asked}, expected 1 to its full rank {matrix.full}")
    return min(asked, matrix.full)


def _meet(graph: ModelGraph, matrices: Mapping[str, Matrix], target: Target) -> list[_Plan]:
    """Ranks by one energy for all layers, the largest with which the network costs no more than a target."""
    count = {"params": lambda c: c.parameters, "macs": lambda c: c.macs, "size": lambda c: c.bytes}.get(target.quantity)
    if count is None:
        raise SurgeryError(f"factorize: a target of {target.quantity} is not possible; use params, macs or size")
    whole = cost(graph)
    before = count(whole)
    limit = target.goal(before)
    if before <= limit:
        raise SurgeryError(f"factorize: the network has {before:,} and meets {target} as it is")

    def plans(energy: float) -> list[_Plan]:
        made = (_Plan(path, matrix, matrix.rank_for(energy)) for path, matrix in matrices.items())
        return [plan for plan in made if plan.saves]

    def reached(chosen: list[_Plan]) -> float:
        saved = sum(_saved(graph, plan, target.quantity) for plan in chosen)
        return before - saved

    low, high = 0.0, 1.0
    if reached(plans(1e-9)) > limit:
        raise SurgeryError(
            f"factorize: {target} is {limit:,.0f}; the closest that can be reached is {reached(plans(1e-9)):,.0f}"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(plans(middle)) <= limit else (low, middle)
    return plans(max(low, 1e-9))


def _saved(graph: ModelGraph, plan: _Plan, quantity: str) -> float:
    """What the factors of a layer save."""
    matrix = plan.matrix
    weights = matrix.rows * matrix.columns - plan.rank * (matrix.rows + matrix.columns)
    if quantity == "params":
        return float(weights * matrix.groups)
    if quantity == "size":
        return float(weights * matrix.groups * matrix.layer.weight.element_size())
    counts = macs_by_node(graph)
    calls = [node for node in _calls(graph.module, plan.path) if node in counts]
    return float(sum(plan.matrix.macs_saved(plan.rank, counts[node], *_shapes(node)) for node in calls))


def _shapes(node: fx.Node) -> tuple[torch.Size, torch.Size]:
    return node.all_input_nodes[0].meta["value"].shape, node.meta["value"].shape


def _calls(module: fx.GraphModule, path: str) -> Iterator[fx.Node]:
    return (node for node in module.graph.nodes if node.op == "call_module" and node.target == path)


def _factorized(module: fx.GraphModule) -> list[str]:
    """The paths of layers that are two as `factorize` makes them, and are called as it does."""
    paths = {str(n.target) for n in module.graph.nodes if n.op == "call_module"}
    owners = (path.removesuffix(f".{REDUCE}") for path in sorted(paths) if path.endswith(f".{REDUCE}"))
    return [path for path in owners if f"{path}.{EXPAND}" in paths and _is_pair(module, path)]


def _is_pair(module: fx.GraphModule, path: str) -> bool:
    owner = module.get_submodule(path)
    if not are_factors(owner.get_submodule(REDUCE), owner.get_submodule(EXPAND)):
        return False
    reads = [node.all_input_nodes for node in _calls(module, f"{path}.{EXPAND}")]
    calls = set(_calls(module, f"{path}.{REDUCE}"))
    return {source for sources in reads for source in sources} == calls and all(len(node.users) == 1 for node in calls)


def _beside(module: fx.GraphModule, path: str) -> str:
    """The path of a pair; another where something else has its place below it, as in files of attentions."""
    owner = module.get_submodule(path)
    if set(owner._modules) == {REDUCE, EXPAND} and not owner._parameters and not owner._buffers:
        return path
    taken = {name for name, _ in module.named_modules()} | {name for name, _ in module.named_parameters()}
    return next(place for count in itertools.count(1) if (place := f"{path}_{count}") not in taken)


def _replace(module: fx.GraphModule, path: str, by: nn.Module | Mapping[str, nn.Module]) -> None:
    """Put one layer in the place of two, or two in that of one, in place."""
    owner, _, name = path.rpartition(".")
    parent = module.get_submodule(owner)
    old = parent.get_submodule(name)
    if isinstance(by, nn.Module):
        place = _beside(module, path)
        module.add_submodule(place, by.train(old.training))
        for node in list(_calls(module, f"{path}.{EXPAND}")):
            reduce = node.all_input_nodes[0]
            node.target, node.args = place, reduce.args
            module.graph.erase_node(reduce)
        if place != path:
            module.delete_submodule(f"{path}.{REDUCE}")
            module.delete_submodule(f"{path}.{EXPAND}")
        return
    pair = _rest_of(old, path, by)
    for key, layer in by.items():
        pair.add_module(key, layer.train(old.training))
    pair.training = old.training
    setattr(parent, name, pair)
    for node in list(_calls(module, path)):
        with module.graph.inserting_before(node):
            reduce = module.graph.call_module(f"{path}.{REDUCE}", node.args, node.kwargs)
        node.target, node.args, node.kwargs = f"{path}.{EXPAND}", (reduce,), {}


def _rest_of(layer: nn.Module, path: str, by: Collection[str]) -> nn.Module:
    """What a layer has beside its weights, where the network may read it."""
    rest, own = nn.Module(), {"weight", "bias", "parametrizations"}
    parts = {**layer._parameters, **layer._buffers, **layer._modules}
    for name, part in parts.items():
        if name in by:
            raise SurgeryError(f"factorize: {path} has a {name} of its own, where one of its factors would stand")
        if name not in own and part is not None:
            put(rest, name, part)
    return rest


def _first(reasons: Mapping[str, str]) -> str:
    shown = "; ".join(f"{path}: {reason}" for path, reason in list(reasons.items())[:3])
    return shown or "it has no linear layer and no convolution"

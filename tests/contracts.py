"""The contracts of surgery on one network, as checks that any test can make of any network."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

import graphsurgery as gs
from graphsurgery.axes import algebra as ax
from graphsurgery.axes.maps import ChannelMap
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.gate import fold, gate
from graphsurgery.surgery.channels.nesting import Nesting
from graphsurgery.surgery.deviation import deviation
from graphsurgery.surgery.gates import gates
from graphsurgery.surgery.remapping.remap import remap

FLOAT32 = 1e-5
"""By how much outputs in single precision may differ that are equal in double: every processor's kernels sum in an
order of their own, in each of tens of layers, and each sum is off by some 1e-7."""


class Network(nn.Module):
    """A network written in one expression: `forward` gets the layers by name, and the inputs."""

    def __init__(self, forward: Any, parameters: Mapping[str, Any] = MappingProxyType({}), **layers: nn.Module) -> None:
        super().__init__()
        self.rule = forward
        for name, layer in layers.items():
            self.add_module(name, layer)
        for name, tensor in parameters.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Any:
        return self.rule(self, x)


def typed(network: nn.Module, *shapes: Sequence[int], seed: int = 0) -> tuple[gs.ModelGraph, list[Tensor], nn.Module]:
    """A network in float64 with random values and in eval mode, traced at batch 2, and inputs of batch 3."""
    generator = torch.Generator().manual_seed(seed)
    network = network.double().eval()
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(*((0.5, 1.5) if "var" in name else (-1.0, 1.0)), generator=generator)
    x = [torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return gs.trace(network, [t[:2] for t in x], check=False), x, network


def assert_same_in_both_modes(graph: gs.ModelGraph, model: nn.Module, x: Tensor) -> None:
    """In evaluation and in training, with the same random numbers."""
    for training in (False, True):
        outputs = []
        for network in (graph.module.train(training), model.train(training)):
            torch.manual_seed(1)
            outputs.append(network(x))
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


def masked(graph: gs.ModelGraph, kept: Mapping[str, Any]) -> gs.ModelGraph:
    """The network with the reads of everything but `kept` masked to 0, by hard gates."""
    gated = gate(graph, list(kept))
    for name, module in gates(gated).items():
        with torch.no_grad():
            module.loc.fill_(-60.0)
            module.loc[kept[name]] = 60.0
    return gated


def random_choice(
    graph: gs.ModelGraph, seed: int = 0, share: float = 0.5, exact: bool = True, scalable: bool = True
) -> dict[str, Tensor]:
    """Random indices for the spaces of a network; only those that no operator mixes if `exact`.

    Those that something reads without a weight are left out where gates are to stand in (`scalable`).
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        s.name: torch.randperm(s.size, generator=generator)[: max(1, round(share * s.size))].sort().values
        for s in graph.spaces
        if s.outer and (s.scalable or not scalable) and s.readers and not (exact and s.mixed)
    }


def assert_permutes(graph: gs.ModelGraph, x: Sequence[Tensor], seed: int = 0) -> None:
    """The order of channels means nothing: with every space in a random order the outputs are the same.

    This needs no gates and no masks, so it proves the types by themselves.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = {s.dim: ChannelMap(torch.randperm(s.size, generator=generator)) for s in graph.spaces}
    assert deviation(remap(graph, maps, {})(*x), graph(*x)) < 1e-10


def assert_contracts(network: nn.Module, *shapes: Sequence[int], seed: int = 0) -> gs.ModelGraph:
    """Trace, permute, gate, fold, compress and compress to single channels; returns the typed network."""
    graph, x, network = typed(network, *shapes, seed=seed)
    with torch.no_grad():
        assert deviation(graph(*x), network(*x)) < 1e-12
        assert_permutes(graph, x, seed)
        outer = [s for s in graph.spaces if s.outer]
        if outer:
            compress(graph, {s.name: 1 for s in outer})(*x)
        kept = random_choice(graph, seed)
        if kept:
            assert deviation(compress(graph, kept)(*x), masked(graph, kept)(*x)) < 1e-10
            assert_gates(graph, x, list(kept))
    return graph


def assert_direct_sum(graphs: Sequence[gs.ModelGraph], x: Sequence[Tensor], apart: str | None = None) -> gs.ModelGraph:
    """Networks side by side give the mean of their outputs; returns their direct sum.

    Args:
        graphs: the networks.
        x: inputs.
        apart: the first node that has to be computed for each network; None where there is none.
    """
    big = concatenate(graphs)
    assert next(iter(big.lineage[-1].get("apart", [])), None) == apart
    with torch.no_grad():
        assert deviation(big(*x), sum(graph(*x) for graph in graphs) / len(graphs)) < 1e-12
    return big


def assert_gates(graph: gs.ModelGraph, x: Sequence[Tensor], names: list[str]) -> None:
    """Open gates change nothing, and folding random gates keeps the outputs."""
    gated = gate(graph, names, loc=60.0)
    assert deviation(gated(*x), graph(*x)) < 1e-12
    generator = torch.Generator().manual_seed(len(names))
    for module in gates(gated).values():
        module.loc.copy_(torch.randn(module.channels, generator=generator, dtype=torch.float64))
    assert deviation(fold(gated)(*x), gated(*x)) < 1e-12


class Masked(fx.Interpreter):
    """The network as it is, with 0 for what is read of channels that are not kept; decided element by element.

    `kept` has the indices of each space, `[kept]`, or a choice in each group, `[groups, kept]`.
    """

    def __init__(self, graph: gs.ModelGraph, kept: Mapping[str, Any]) -> None:
        super().__init__(graph.module)
        self.masks: dict[tuple[fx.Node, fx.Node], Tensor] = {}
        types = graph.types
        for name, indices in kept.items():
            space = graph.space(name)
            for access in types.readers:
                if access.value is not None and space.dim in ax.dims_of(access.axis):
                    mask = _mask(types.types[access.value].axes, space.dim, indices, Nesting(graph).outers(space))
                    key = (access.node, access.value)
                    self.masks[key] = self.masks.get(key, torch.ones(())) * mask

    def run_node(self, n: fx.Node) -> Any:
        whole = dict(self.env)
        read = {value: whole[value] * mask for (node, value), mask in self.masks.items() if node is n}
        self.env.update({value: masked.to(whole[value].dtype) for value, masked in read.items()})
        result = super().run_node(n)
        self.env.update({value: whole[value] for node, value in self.masks if node is n})
        return result


def _mask(axes: Sequence[Any], dim: Any, kept: Any, outers: Sequence[Any]) -> Tensor:
    """1 where every index of `dim` that an element of a tensor has is kept."""
    kept = torch.as_tensor(kept)
    allowed = [set(row.tolist()) for row in (kept if kept.dim() == 2 else kept.expand(1, -1))]
    starts = dict(zip(outers, itertools.accumulate((d.size for d in outers), initial=0), strict=False))
    mask = torch.ones([ax.size_of(axis) if any(d in (dim, *outers) for d in ax.dims_of(axis)) else 1 for axis in axes])
    labels = [_labels(axis) if n > 1 else [{}] for n, axis in zip(mask.shape, axes, strict=True)]
    for place in itertools.product(*(range(n) for n in mask.shape)):
        here = [labels[axis][position] for axis, position in enumerate(place)]
        for own in (label for label in here if dim in label):
            told = [label for label in (own, *here) if any(o in label for o in outers)]
            group = next((starts[o] + label[o] for label in told for o in outers if o in label), 0)
            if own[dim] not in allowed[group if kept.dim() == 2 else 0]:
                mask[place] = 0
    return mask.double()


def _labels(axis: Any) -> list[dict[Any, int]]:
    """The index of every dim at every index of an axis."""
    terms = ax.resolve(axis)
    return [
        dict(zip(term, index, strict=True))
        for term in terms
        for index in itertools.product(*(range(d.size) for d in term))
    ]

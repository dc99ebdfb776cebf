"""All contracts of all passes on one random network: which hold, which requests are refused, and which are broken."""

from __future__ import annotations

import copy
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from contracts import Masked, random_choice
from contracts import masked as gates_masked
from torch import Tensor, nn
from unusual_steps import UnusualNetwork, fill

import graphsurgery as gs
from graphsurgery.axes.algebra import dims_of
from graphsurgery.axes.maps import ChannelMap, MapInGroups
from graphsurgery.network.outputs.naming import run
from graphsurgery.passes.align import align
from graphsurgery.passes.compress import compress
from graphsurgery.passes.concatenate import concatenate
from graphsurgery.passes.deepen import deepen
from graphsurgery.passes.factorize import factorize, unfactorize
from graphsurgery.passes.gate import fold, gate, gateable
from graphsurgery.passes.mask import mask
from graphsurgery.passes.prune_dead import prune_dead
from graphsurgery.passes.slim import slim
from graphsurgery.passes.widen import undo, widen
from graphsurgery.surgery.channels.choice import WITHIN
from graphsurgery.surgery.channels.slimming import Slimmable
from graphsurgery.surgery.deviation import UnlikeError, apart, mean_of
from graphsurgery.surgery.gates import gates
from graphsurgery.surgery.growth.shares import obstacles
from graphsurgery.surgery.masks.mask_set import MaskSet, maskable
from graphsurgery.surgery.remapping.remap import remap

HOLDS, REFUSED, VIOLATED, CRASHED = "holds", "refused", "violated", "crashed"
OUTCOMES = (HOLDS, REFUSED, VIOLATED, CRASHED)
FAULTS = (VIOLATED, CRASHED)
ALLOWED = 1e-9
"""The largest relative deviation in float64 of a network that does not enlarge the rounding of its inputs."""
EXCUSED = 1e-5
CRITERIA = ("l2", "l1", "bn", "taylor", "random")

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Found:
    """What became of one contract.

    Attributes:
        outcome: one of `OUTCOMES`.
        words: why it was refused, how far it is off, or what was raised.
        seconds: that the request took, without what it was compared with.
    """

    outcome: str
    words: str = ""
    seconds: float = 0.0


class Subject:
    """A random network with values, its trace, and inputs; everything in float64.

    Args:
        seed: of the network, of its weights and of what is asked for.
        steps: how many steps stand in it.
        kinds: of steps; by default all.
        check: whether the trace is compared with its module before it is given out, as users have it.
    """

    def __init__(self, seed: int, steps: int = 4, kinds: Any = None, *, check: bool = True) -> None:
        self.seed, self.check = seed, check
        self.network = UnusualNetwork(seed, steps, kinds).double().eval()
        fill(self.network, seed)
        self.x = self.network.inputs(3, torch.Generator().manual_seed(seed))
        self.graph: gs.ModelGraph
        self.allowed = self.allowed_of(self.network)

    def allowed_of(self, network: nn.Module) -> float:
        """What rounding may do to a network: a thousand times what it does where the inputs are rounded otherwise."""
        generator = torch.Generator().manual_seed(self.seed)
        moved = [
            x * (1 + 2e-16 * torch.randn(x.shape, generator=generator, dtype=x.dtype)) if x.is_floating_point() else x
            for x in self.x
        ]
        off = apart(run(network, moved, 0), run(network, self.x, 0))
        return min(max(ALLOWED, 1e3 * off), EXCUSED)

    def trace(self) -> float:
        """Trace it, and compare it with the module in evaluation."""
        examples = [x[:2] for x in self.x]
        self.graph = gs.trace(copy.deepcopy(self.network), examples, check=self.check)
        self.graph.module.eval()
        return self.off(self.graph, run(copy.deepcopy(self.network), self.x, 1))

    def outputs(self, graph: gs.ModelGraph) -> Outputs:
        """What a network gives in evaluation."""
        return run(graph.module.eval(), self.x, 1)

    @cached_property
    def expected(self) -> Outputs:
        """What the traced network gives in evaluation."""
        return self.outputs(self.graph)

    @cached_property
    def other(self) -> gs.ModelGraph:
        """The same network with other weights."""
        network = copy.deepcopy(self.network)
        fill(network, self.seed + 10**6)
        return gs.trace(network, [x[:2] for x in self.x], check=False)

    def off(self, graph: gs.ModelGraph, expected: Outputs | None = None) -> float:
        """How far a network is off what is expected, by default off the traced one."""
        return apart(self.outputs(graph), self.expected if expected is None else expected)

    def generator(self) -> torch.Generator:
        """Random numbers for a contract."""
        return torch.Generator().manual_seed(self.seed + 1)


# Each contract gives how far its network is off; what it asks of a pass stands in `asking`, which is timed.

Asked = Callable[[], Any]


def in_training(subject: Subject, _: Any) -> float:
    """The trace computes in training mode what the module does."""
    if subject.graph.lineage[0].get("only as in evaluation"):
        raise gs.SurgeryError(f"it trains as it evaluates: {subject.graph.lineage[0]['only as in evaluation']}")
    outputs = []
    for module in (subject.graph.module, subject.network):
        module = copy.deepcopy(module).train()
        outputs.append(run(module, subject.x, 2))
    return apart(*outputs)


def permuted(subject: Subject, asked: Any) -> float:
    """The order of channels means nothing."""
    graph = subject.graph
    maps = {s.dim: ChannelMap(torch.randperm(s.size, generator=subject.generator())) for s in graph.spaces}
    return subject.off(asked(lambda: remap(graph, maps, {})))


def saved(subject: Subject, asked: Any) -> float:
    """Bit for bit, in both modes."""

    def again() -> gs.ModelGraph:
        with tempfile.TemporaryDirectory() as folder:
            gs.save(subject.graph, Path(folder) / "m.pt")
            return gs.load(Path(folder) / "m.pt")

    loaded = asked(again)
    off = 0.0
    for training in (False, True):
        found = [run(copy.deepcopy(g.module).train(training), subject.x, 3) for g in (loaded, subject.graph)]
        same = all(
            torch.equal(a, b) or bool((a.isnan() & b.isnan()).all())
            for a, b in zip(*(f.values() for f in found), strict=True)
        )
        off = max(off, apart(*found)) if same else float("inf")
    return off


def _masked_outputs(subject: Subject, kept: Mapping[str, Any]) -> Outputs:
    """What the network gives with the reads of all other channels masked; inside recurrent layers by their gates."""
    graph = subject.graph
    inside = {dim for access in graph.types.readers if access.value is None for dim in dims_of(access.axis)}
    if any(graph.space(name).dim in inside for name in kept):
        return subject.outputs(gates_masked(graph, kept))
    return run(Masked(graph, kept).run, subject.x, 1)


def _exact_choice(subject: Subject, share: float) -> dict[str, Tensor]:
    """Random channels of the spaces whose cut can be compared with a mask."""
    inside = any(access.value is None for access in subject.graph.types.readers)
    kept = random_choice(subject.graph, subject.seed, share, scalable=inside)
    folded = {  # a mask of one batch is none of another
        dim
        for access in subject.graph.types.readers
        if access.value is not None and access.value.meta["value"].shape[0] != subject.graph.batch
        for dim in dims_of(access.axis)
        if not access.weighted
    }
    kept = {name: channels for name, channels in kept.items() if subject.graph.space(name).dim not in folded}
    if inside:
        gated = {space.name for space in gateable(subject.graph)}
        kept = {name: channels for name, channels in kept.items() if name in gated}
    return kept


def compressed(subject: Subject, asked: Any) -> float:
    """Random channels of random spaces gone: the network with the removed reads masked."""
    graph = subject.graph
    kept = _exact_choice(subject, 0.6)
    if not kept:  # nothing that is exact can go; what can is cut without a comparison
        return in_half(subject, asked)
    return subject.off(asked(lambda: compress(graph, kept)), _masked_outputs(subject, kept))


def in_half(subject: Subject, asked: Any) -> float:
    """Half of everything that a share cuts: it runs, and its types are those that it had."""
    half = asked(lambda: compress(subject.graph, 0.5, importance="random", seed=subject.seed))
    found, expected = subject.outputs(half), subject.expected
    if [t.shape for t in found.values()] != [t.shape for t in expected.values()]:
        return float("inf")
    maps = {s.dim: ChannelMap(torch.randperm(s.size, generator=subject.generator())) for s in half.spaces}
    return apart(subject.outputs(remap(half, maps, {})), found)


def by_criterion(subject: Subject, asked: Any) -> float:
    """The channels that a criterion keeps, whatever they are: the network with the other reads masked."""
    graph = subject.graph
    exact = list(_exact_choice(subject, 0.5))
    if not exact:
        return in_half(subject, asked)
    criterion = CRITERIA[subject.seed % len(CRITERIA)]
    if criterion == "taylor" and not _have_gradients(subject):
        criterion = "l2"
    small = asked(lambda: compress(graph, dict.fromkeys(exact, 0.5), importance=criterion, seed=subject.seed))
    graph.module.zero_grad()
    kept = {s.name: _sources(small.origin.edit.maps[s.dim]) for s in graph.spaces if s.dim in small.origin.edit.maps}
    return subject.off(small, _masked_outputs(subject, kept))


def _have_gradients(subject: Subject) -> bool:
    """Run a backward pass; whether the module itself takes one, which what is written in place may forbid."""
    for module in (copy.deepcopy(subject.network), subject.graph.module):
        module.zero_grad()
        torch.manual_seed(0)
        losses = [t.square().sum() for t in _floating(module.eval()(*subject.x))]
        try:
            torch.stack(losses).sum().backward()
        except RuntimeError:
            if module is subject.graph.module:
                raise
            return False
    for parameter in subject.graph.module.parameters():  # of what training alone needs
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return True


def _sources(channel_map: ChannelMap | MapInGroups) -> Tensor:
    return channel_map.source if isinstance(channel_map, ChannelMap) else next(iter(channel_map.sources.values()))


def _floating(value: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if t.is_floating_point() and t.requires_grad]


def inside_groups(subject: Subject, asked: Any) -> float:
    """Half of what stands inside heads and groups, in each of the ways; it runs, and its order means nothing."""
    within = WITHIN[subject.seed % len(WITHIN)]
    half = asked(lambda: compress(subject.graph, 0.5, within=within, importance="l1"))
    found = subject.outputs(half)
    maps = {s.dim: ChannelMap(torch.randperm(s.size, generator=subject.generator())) for s in half.spaces}
    return apart(subject.outputs(remap(half, maps, {})), found)


def to_single_channels(subject: Subject, asked: Any) -> float:
    """One channel of everything, heads and groups and what is inside of them too; it runs, and is as its file."""
    names = [s.name for s in subject.graph.spaces if s.outer]
    if not names:
        return in_half(subject, asked)
    single = asked(lambda: compress(subject.graph, dict.fromkeys(names, 1)))
    found = subject.outputs(single)
    with tempfile.TemporaryDirectory() as folder:
        gs.save(single, Path(folder) / "m.pt")
        return apart(subject.outputs(gs.load(Path(folder) / "m.pt")), found)


def open_gates(subject: Subject, asked: Any) -> float:
    """Gates that are open change nothing, and random gates can be folded."""
    gated = asked(lambda: gate(subject.graph, loc=60.0))
    off = subject.off(gated)
    generator = subject.generator()
    for module in gates(gated).values():
        module.loc.data.copy_(torch.randn(module.channels, generator=generator, dtype=torch.float64))
    return max(off, subject.off(fold(gated), subject.outputs(gated)))


def _with_holes(subject: Subject) -> gs.ModelGraph:
    """The network with whole rows and columns of its weights 0."""
    graph, generator = subject.graph.copy(), subject.generator()
    for tensor in graph.tensors().values():
        if isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point():
            for axis, size in enumerate(tensor.shape[:2]):
                gone = torch.rand(size, generator=generator) < 0.3
                tensor.data.movedim(axis, 0)[gone] = 0
    return graph


def pruned(subject: Subject, asked: Any) -> float:
    """Without the channels that are dead."""
    holed = _with_holes(subject)
    return subject.off(asked(lambda: prune_dead(holed)), subject.outputs(holed))


def widened(subject: Subject, asked: Any) -> float:
    """Everything that can grow grows, and back again; in training mode too where nothing is drawn."""
    wide = asked(lambda: widen(subject.graph, 1.5, seed=subject.seed))
    off = max(subject.off(wide), subject.off(undo(wide)))
    if not any(isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.p for m in wide.module.modules()):
        off = max(off, apart(*(run(copy.deepcopy(g.module).train(), subject.x, 1) for g in (wide, subject.graph))))
    return off


def widened_inside(subject: Subject, asked: Any) -> float:
    """Every space by its name, those inside of others too, by unlike sizes, at once and in turn, and once more."""
    graph, stays = subject.graph, obstacles(subject.graph)
    sizes = {s.name: s.size + 1 + i % 3 for i, s in enumerate(graph.spaces) if s.dim not in stays}
    if not sizes:
        return widened(subject, asked)
    wide = asked(lambda: widen(graph, to=sizes, init="equal", seed=subject.seed))
    after_another = graph
    for name, size in sizes.items():
        if name in (space.name for space in after_another.spaces if space.dim not in obstacles(after_another)):
            after_another = widen(after_another, to={name: size}, seed=subject.seed)
    return max(map(subject.off, (wide, undo(wide), widen(wide, 1.3), after_another)))


def deepened(subject: Subject, asked: Any) -> float:
    """Deeper where a place is proposed; else behind a layer, as the message says."""

    def deeper() -> gs.ModelGraph:
        try:
            return deepen(subject.graph, seed=subject.seed)
        except gs.SurgeryError as cause:
            if "name a place" not in str(cause):
                raise
            return deepen(subject.graph, "head", seed=subject.seed)

    return subject.off(asked(deeper))


def factorized(subject: Subject, asked: Any) -> float:
    """At full rank, and back again."""
    two = asked(lambda: factorize(subject.graph, rank=1.0, force=True))
    return max(subject.off(two), subject.off(unfactorize(two)))


def concatenated(subject: Subject, asked: Any) -> float:
    """Side by side with another: the mean of the two."""
    other = subject.other
    both = asked(lambda: concatenate([subject.graph, other]))
    found, theirs = subject.expected, subject.outputs(other)
    numbers = {name for name, tensor in found.items() if tensor.is_floating_point()}
    expected = {name: mean_of([found[name], theirs[name]]) for name in numbers}
    return apart({name: t for name, t in subject.outputs(both).items() if name in numbers}, expected)


def slimmed(subject: Subject, asked: Any) -> float:
    """Sorted, at full width, and at half of it."""
    ordered = asked(lambda: slim(subject.graph))
    slimmable = Slimmable(ordered)
    off = max(subject.off(ordered), subject.off(replace(ordered, module=slimmable.extract(1.0).module)))
    narrow = run(slimmable.at(0.5), subject.x, 1)
    return max(off, apart(narrow, subject.outputs(slimmable.extract(0.5))))


def masked(subject: Subject, asked: Any) -> float:
    """Dead weights are 0."""
    generator, weights = subject.generator(), maskable(subject.graph)
    masks = MaskSet({name: torch.rand(w.shape, generator=generator) < 0.7 for name, w in weights.items()})
    zeroed = subject.graph.copy()
    for name, tensor in zeroed.tensors().items():
        if name in masks:
            tensor.data *= masks[name]
    return subject.off(asked(lambda: mask(subject.graph, masks)), subject.outputs(zeroed))


def aligned(subject: Subject, asked: Any) -> float:
    """In the order of another network, by weights and by activations."""
    other = subject.other
    off = subject.off(asked(lambda: align(subject.graph, other)))
    if len(subject.x) == 1:
        off = max(off, subject.off(align(subject.graph, other, [subject.x[0]])))
    return off


def chained(subject: Subject, asked: Any) -> float:
    """Edits of edits, in an order that the seed says: the same outputs after each, and after a file of the last."""
    edits: list[Callable[[gs.ModelGraph], gs.ModelGraph]] = [
        lambda g: widen(g, 1.5, seed=subject.seed),
        lambda g: deepen(g, seed=subject.seed),
        lambda g: factorize(g, rank=1.0, force=True),
        lambda g: fold(gate(g, loc=60.0)),
        lambda g: prune_dead(g),
        lambda g: slim(g, importance="l1"),
    ]
    order = torch.randperm(len(edits), generator=subject.generator()).tolist()

    def all_of_them() -> gs.ModelGraph:
        graph = subject.graph
        for number in order:
            try:
                graph = edits[number](graph)
            except gs.SurgeryError:  # the contract of that edit says why
                continue
        with tempfile.TemporaryDirectory() as folder:
            gs.save(graph, Path(folder) / "m.pt")
            return gs.load(Path(folder) / "m.pt")

    last = asked(all_of_them)
    off = subject.off(last)
    try:
        small = compress(last, 0.5, importance="random", seed=subject.seed)
    except gs.SurgeryError:
        return off
    maps = {s.dim: ChannelMap(torch.randperm(s.size, generator=subject.generator())) for s in small.spaces}
    moved = apart(subject.outputs(remap(small, maps, {})), subject.outputs(small))
    return max(off, moved * subject.allowed / subject.allowed_of(small.module))  # cut, it may enlarge rounding


def exported(subject: Subject, asked: Any) -> float:
    """In ONNX Runtime, in float32; the export compares."""
    single = subject.graph.copy()
    single.module.float()

    def there() -> float:
        with tempfile.TemporaryDirectory() as folder:
            gs.export_onnx(single, Path(folder) / "m.onnx", check=False)
            found = gs.check_onnx(single, Path(folder) / "m.onnx")
            return max(found.deviations.values())

    return float(asked(there)) * 1e-6


CONTRACTS: dict[str, Callable[[Subject, Any], float]] = {
    "traced, in training": in_training,
    "permuted": permuted,
    "saved and loaded": saved,
    "compress": compressed,
    "compress, by criteria": by_criterion,
    "compress, all in half": in_half,
    "compress, within groups": inside_groups,
    "compress, single channels": to_single_channels,
    "gate, fold": open_gates,
    "prune_dead": pruned,
    "widen, undo": widened,
    "widen, every space": widened_inside,
    "deepen": deepened,
    "factorize": factorized,
    "concatenate": concatenated,
    "slim": slimmed,
    "mask": masked,
    "align": aligned,
    "edits of edits": chained,
}


@cache
def _stranger() -> gs.ModelGraph:
    """A network of another topology that takes images too."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 5))
    return gs.trace(network.double().eval(), torch.zeros(2, 3, 4, 4, dtype=torch.float64), check=False)


IMPOSSIBLE: dict[str, tuple[str, Callable[[gs.ModelGraph], Any]]] = {
    "compress to fewer parameters than one": ("compress, all in half", lambda g: compress(g, target="params=1")),
    "compress an unknown space": ("compress, all in half", lambda g: compress(g, {"nowhere": 0.5})),
    "gate an unknown space": ("gate, fold", lambda g: gate(g, ["nowhere"])),
    "widen like another network": ("widen, undo", lambda g: widen(g, like=_stranger())),
    "deepen behind an unknown layer": ("deepen", lambda g: deepen(g, "nowhere")),
    "factorize above the full rank": ("factorize", lambda g: factorize(g, rank=10**6, force=True)),
    "concatenate with another network": ("concatenate", lambda g: concatenate([g, _stranger()])),
    "slim below nothing": ("slim", lambda g: Slimmable(g, min_width=0.0)),
    "mask with the masks of another network": ("mask", lambda g: mask(g, MaskSet.ones(_stranger()))),
    "align to another network": ("align", lambda g: align(g, _stranger())),
}
"""Requests that no network can meet, each with the contract whose work it would be."""


def refused(request: Callable[[gs.ModelGraph], Any]) -> Callable[[Subject, Any], float]:
    """The contract of an impossible request: it holds where the request is refused."""

    def contract(subject: Subject, asked: Any) -> float:
        try:
            asked(lambda: request(subject.graph))
        except gs.SurgeryError:
            return 0.0
        return float("inf")

    return contract


TRACE, ONNX = "traced, in evaluation", "ONNX Runtime"
EVERY = (TRACE, *CONTRACTS, ONNX)


def examine(
    seed: int, steps: int = 4, kinds: Any = None, *, onnx: bool = False, check: bool = True
) -> dict[str, Found]:
    """All contracts on one network; those of passes are left out where it cannot be traced."""
    subject = Subject(seed, steps, kinds, check=check)
    found = {TRACE: measured(subject, lambda s, asked: asked(s.trace))}
    if not hasattr(subject, "graph"):
        return found
    for name, contract in CONTRACTS.items():
        found[name] = measured(subject, contract)
    for name, (_, request) in IMPOSSIBLE.items():
        found[name] = measured(subject, refused(request))
    if onnx:
        found[ONNX] = measured(subject, exported)
    return found


def measured(subject: Subject, contract: Callable[[Subject, Any], float]) -> Found:
    """What becomes of one contract."""
    seconds = 0.0

    def asked(request: Callable[[], Any]) -> Any:
        nonlocal seconds
        began = time.process_time()
        try:
            return request()
        finally:
            seconds += time.process_time() - began

    try:
        off = contract(subject, asked)
    except UnlikeError as cause:
        return Found(VIOLATED, str(cause), seconds)
    except gs.SurgeryError as cause:
        return Found(REFUSED, _without_names(str(cause), subject), seconds)
    except Exception as cause:  # what a user would see as a traceback
        return Found(CRASHED, f"{type(cause).__name__}: {cause}", seconds)
    if off <= subject.allowed:
        return Found(HOLDS, "", seconds)
    return Found(VIOLATED, f"off by {off:.1e}", seconds)


def _without_names(text: str, subject: Subject) -> str:
    """A refusal with its names and numbers taken out, so that refusals for one reason are one text."""
    names = {name for name, _ in subject.network.named_modules()} | {
        name for name, _ in subject.network.named_parameters()
    }
    if hasattr(subject, "graph"):
        names |= {node.name for node in subject.graph.module.graph.nodes}
        names |= {str(node.target) for node in subject.graph.module.graph.nodes if isinstance(node.target, str)}
        names |= {space.name for space in subject.graph.spaces}
    for name in sorted(filter(None, names), key=len, reverse=True):
        if not re.fullmatch(r"[a-z]+", name):
            text = re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w])", "…", text)
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "N", text)[:300]

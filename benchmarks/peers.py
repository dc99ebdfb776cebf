"""Time to halve a network: tracing, typing and compressing, against Torch-Pruning and torch-kirigami.

All get their own copy of the same network, made outside of the timing, and take turns in one process with one thread.
Ours: `trace`, which follows the network and types it, then `compress` with `l2`. Torch-Pruning: `MagnitudePruner`,
which builds the dependency graph, then `step` with `MagnitudeImportance(p=2)`. torch-kirigami: `DependencyGraph.build`,
`Pruner.plan_remove` of the second half of every layer's outputs, then `apply`; it ranks nothing, as its automatic
selection takes minutes (the last lines of the section have one measurement). Both peers change the network in place.
All leave the classifier's outputs alone. The clock is processor time, which what else the machine does disturbs less;
as in `timeit`, it runs without garbage collection.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import cProfile
import gc
import math
import pstats
import signal
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch_kirigami
import torch_kirigami.pruning
import torch_pruning
from document import measured, table, write_section
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import graphsurgery as gs
from graphsurgery.axes.algebra import Dim
from graphsurgery.axes.maps import ChannelMap, MapInGroups
from graphsurgery.models.paper.resnet import ResNet
from graphsurgery.models.specs import build, input_shape
from graphsurgery.passes import compress
from graphsurgery.surgery.channels.choice import Choices
from graphsurgery.surgery.channels.importance import Scores
from graphsurgery.surgery.channels.planning import CutPlan
from graphsurgery.surgery.growth.weighted import remap_weighed

MODELS = (
    "resnet18",
    "resnet50",
    "resnet101",
    "vgg16_bn",
    "squeezenet1_1",
    "googlenet",
    "inception_v3",
    "densenet121",
    "densenet201",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mnasnet1_0",
    "efficientnet_b0",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_16",
)
SMALL = (
    "paper/lenet5",
    "paper/lenet_300_100",
    "paper/cnn",
    "paper/conv2",
    "paper/conv4",
    "paper/resnet20",
    "paper/resnet18",
    "paper/vgg11_bn",
    "torchvision/mobilenet_v3_small",
    "torchvision/squeezenet1_1",
)
"""On images of 28 or 32 pixels."""
DEPTHS = (20, 56, 110, 302, 998)
BUDGET = 20.0
"""Processor seconds to spend on the timed rounds of one tool on one network; slow ones get fewer rounds."""
LIMIT = 100.0
"""Processor seconds after which a tool is stopped."""

NOTES = """
Median of so many rounds in processor time, then the fastest and the slowest; slow tools have fewer rounds (`2×`), after
one untimed round in which the result must run. All start from a loaded network and an input `[1, 3, 224, 224]` and
remove half of the channels of every space; the millions of parameters that are left stand in the order of the tools.
Ours leaves the network as it is and returns a new one; the peers change it in place, and the copy that they get is not
part of their time, as the comparison of our trace with the network is none of ours (`check=False`). torch-kirigami is
told which channels go (the second half of each layer), while the others rank them. Torch-Pruning runs the network on
the input to find the dependencies; ours computes shapes only. For vit_b_16 the
benchmark corrects an attribute of the network after Torch-Pruning (`hidden_dim`), without which the result does not
run.

Peak memory is what ours has allocated at most, beyond the network itself and with the result, over the bytes of the
network's parameters: the highest sum of torch's allocations (torch's profiler, each allocation and release) plus the
highest sum of Python's objects (`tracemalloc`), in a round of its own.
""".strip()

DEPTH_NOTES = """
ResNets for images of 32 pixels, 16-32-64 channels in basic blocks; a node is a call in our graph. The time over all is
trace, type and compress as above.
""".strip()


PHASE_NOTES = """
`types` and `spaces` are inferred when they are first asked for; `plan` scores channels and chooses them, `gather` makes
the new network, `code` writes and compiles its forward. The last column is the time to copy the numbers that are left.
""".strip()


def ours(model: nn.Module, x: Tensor) -> nn.Module:
    """Trace, type and compress to half the channels, and write the code, which is else written at the first run."""
    small = compress.compress(gs.trace(model, x, copy=False, check=False), keep=0.5, importance="l2").module
    small.recompile()
    return small


def phases(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Processor seconds of each part of `ours`, by its name."""
    found: dict[str, float] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = function()
        found[name] = time.process_time() - start
        return result

    graph = timed("trace", lambda: gs.trace(model, x, copy=False, check=False))
    timed("types", lambda: graph.types)
    timed("spaces", lambda: graph.spaces)
    maps = timed("plan", lambda: _planned(graph))
    small = timed("gather", lambda: remap_weighed(graph, maps, {}))
    timed("code", small.module.recompile)
    return found


def _planned(graph: gs.ModelGraph) -> dict[Dim, ChannelMap | MapInGroups]:
    """Half of the channels of every space, as `ours` chooses them."""
    plan = CutPlan(graph, Choices(graph, Scores(graph, "l2", 0)), {}, "groups", 1)
    plan.share(0.5)
    return {space.dim: channel_map for space, channel_map in plan.maps()}


def torch_pruning_halves(model: nn.Module, x: Tensor) -> nn.Module:
    """Build the dependency graph and prune half the channels, in place.

    A VisionTransformer keeps its width in an attribute too, which is corrected by hand, as the authors advise.
    """
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[_layers(model)[-1][1]],
    )
    pruner.step()
    if isinstance(model, VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels
    return model


def torch_kirigami_halves(model: nn.Module, x: Tensor) -> nn.Module:
    """Analyse the network and remove the second half of every layer's outputs, in place."""
    graph = torch_kirigami.DependencyGraph.build(model, args=(x,))
    span = torch_kirigami.IndexSet.span
    removed = []
    for path, _ in _layers(model)[:-1]:
        weight = graph.parameter(f"{path}.weight")
        outputs, *others = weight.shape
        region = torch_kirigami.Region((span(outputs // 2, outputs), *(span(0, size) for size in others)))
        removed.append(torch_kirigami.Selection(weight, (region,)))
    pruner = torch_kirigami.pruning.Pruner(model, graph=graph)
    return pruner.apply(pruner.plan_remove(removed))[0]


def torch_kirigami_chooses(model: nn.Module, x: Tensor) -> nn.Module:
    """The automatic selection of its first example: half of every candidate axis by group magnitude, in place."""
    pruning = torch_kirigami.pruning
    pruner = pruning.Pruner(model, graph=torch_kirigami.DependencyGraph.build(model, args=(x,)))
    strategy = pruning.Greedy(pruning.GroupMagnitude(p=2))
    return pruner.prune(pruner.discover_candidates(), budget=pruning.ChannelRatio(0.5), strategy=strategy)[0]


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Convolutions and linear layers in order of definition; the last one is the classifier."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


Halve = Callable[[nn.Module, Tensor], nn.Module]
PEERS: Mapping[str, Halve] = {"Torch-Pruning": torch_pruning_halves, "torch-kirigami": torch_kirigami_halves}
TOOLS: Mapping[str, Halve] = {"graphsurgery": ours, **PEERS}


@dataclass
class Timing:
    """Processor seconds of each round, millions of parameters that are left, and what went wrong, if anything."""

    seconds: list[float] = field(default_factory=list)
    rounds: int = 1
    wanted: int = 9
    parameters: float = math.nan
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.nan

    def __str__(self) -> str:
        if self.failure:
            return "fails"
        scale, unit = (1, "s") if self.median >= 10 else (1e3, "ms")
        median, low, high = (f"{s * scale:.0f}" for s in (self.median, min(self.seconds), max(self.seconds)))
        fewer = f"; {len(self.seconds)}×" if len(self.seconds) < self.wanted else ""
        return f"{median} {unit} ({low}–{high}{fewer})" if len(self.seconds) > 1 else f"{median} {unit} (1×)"


def compare(model: nn.Module, x: Tensor, rounds: int, tools: Mapping[str, Halve] = TOOLS) -> dict[str, Timing]:
    """Time the tools on one network, in turn, after one untimed round in which the results must run."""
    timings = {tool: Timing(wanted=rounds) for tool in tools}
    for number in range(rounds + 1):
        for tool, halve in tools.items():
            timing = timings[tool]
            if not timing.failure and number <= timing.rounds:
                _measure(timing, partial(halve, copy.deepcopy(model), x), x, rounds if number == 0 else 0)
    return timings


def _measure(timing: Timing, halved: Callable[[], nn.Module], x: Tensor, rounds: int) -> None:
    """Time one round; with `rounds`, check the result instead, and plan at most that many."""
    gc.collect()
    gc.disable()
    try:
        with _limited(LIMIT):
            start = time.process_time()
            small = halved()
            seconds = time.process_time() - start
        if not rounds:
            timing.seconds.append(seconds)
            return
        timing.rounds = max(1, min(rounds, int(BUDGET / seconds)))
        with torch.no_grad():
            assert small.eval()(x).dim() == 2
        timing.parameters = sum(p.numel() for p in small.parameters()) / 1e6
    except Exception as error:
        timing.failure = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:150]}"
    finally:
        gc.enable()


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Stop what is inside after so many processor seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def peak_memory(model: nn.Module, x: Tensor) -> float:
    """The most that ours allocates, over the bytes of the parameters."""
    gc.collect()
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        result = ours(model, x)
    allocations = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del result
    gc.collect()
    tracemalloc.start()
    ours(model, x)
    _, objects = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (peak + objects) / sum(p.numel() * p.element_size() for p in model.parameters())


def deep(layers: int) -> nn.Module:
    """A ResNet of basic blocks for small images."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return ResNet(stem, 16, ((layers - 2) // 6,) * 3, 10)


def models_section(names: tuple[str, ...], rounds: int) -> str:
    """The table of networks, with what each tool fails on."""
    rows, failures, ratios = [], [], []
    x = torch.randn(1, 3, 224, 224)
    for name in names:
        model = build(f"torchvision/{name}").eval()
        timings = compare(model, x, rounds)
        peers = [timings[tool] for tool in PEERS]
        fastest = min((t.median for t in peers if not t.failure), default=math.nan)
        ratio = fastest / timings["graphsurgery"].median
        if not any(t.failure for t in timings.values()):
            ratios.append(ratio)
        left = " / ".join("–" if t.failure else f"{t.parameters:.1f}" for t in timings.values())
        rows.append([name, *map(str, timings.values()), _number(ratio), f"{peak_memory(model, x):.2f}", left])
        failures += [f"- {name}, {tool}: {t.failure}" for tool, t in timings.items() if t.failure]
        print(" | ".join(rows[-1]), flush=True)
    print("\n".join(failures))
    head = ["network", *TOOLS, "times faster than the faster", "peak memory / parameters", "millions left"]
    summary = f"On the {len(ratios)} networks that all three halve, ours is {_number(statistics.median(ratios))} times"
    summary += f" faster than the faster of the two at the median, and {_number(min(ratios))} times at the least."
    return "\n\n".join([table(head, rows), summary, NOTES, "\n".join(failures)])


def depth_section(rounds: int) -> str:
    """The table of depths, and one measurement of torch-kirigami's own selection."""
    rows, x = [], torch.randn(1, 3, 32, 32)
    for layers in DEPTHS:
        model = deep(layers).eval()
        nodes = len(gs.trace(model, x, check=False).module.graph.nodes)
        tools = TOOLS if layers < 300 else {"graphsurgery": ours, "Torch-Pruning": torch_pruning_halves}
        timings = compare(model, x, rounds, tools)
        per_node = timings["graphsurgery"].median / nodes * 1e6
        cells = [str(timings[tool]) if tool in timings else "not tried" for tool in TOOLS]
        cells = [f"over {LIMIT:.0f} s" if t == "fails" and "not done" in timings[n].failure else t
                 for n, t in zip(TOOLS, cells, strict=True)]  # fmt: skip
        rows.append([str(layers), str(nodes), cells[0], f"{per_node:.0f} µs", *cells[1:]])
        print(" | ".join(rows[-1]), flush=True)
    head = ["layers", "nodes", "graphsurgery", "per node", *PEERS]
    chosen = compare(deep(20).eval(), x, 1, {"torch-kirigami": torch_kirigami_chooses})["torch-kirigami"]
    print(chosen, chosen.failure)
    remark = f"torch-kirigami's own selection (`Greedy(GroupMagnitude(p=2))`) on 20 layers: {chosen}."
    return "\n\n".join([table(head, rows), DEPTH_NOTES, remark])


def small_section(rounds: int) -> str:
    """The table of small networks, and that of the phases."""
    rows, ratios = [], []
    for spec in SMALL:
        shape = input_shape(spec) if spec.startswith("paper/") else (3, 32, 32)
        assert shape is not None
        timings = compare(build(spec).eval(), torch.randn(1, *shape), rounds)
        fastest = min((timings[tool].median for tool in PEERS if not timings[tool].failure), default=math.nan)
        ratios.append(fastest / timings["graphsurgery"].median)
        rows.append([f"`{spec}`", *map(str, timings.values()), _number(ratios[-1])])
        print(" | ".join(rows[-1]), flush=True)
    networks = table(["network", *TOOLS, "times faster than the faster"], rows)
    summary = f"Median {_number(statistics.median(ratios))}, least {_number(min(ratios))}."
    cases = {
        "`paper/lenet5`": (build("paper/lenet5"), torch.randn(1, 1, 28, 28)),
        "20 layers": (deep(20), torch.randn(1, 3, 32, 32)),
        "110 layers": (deep(110), torch.randn(1, 3, 32, 32)),
        "resnet18": (build("torchvision/resnet18"), torch.randn(1, 3, 224, 224)),
    }
    parts = [_phase_row(name, model.eval(), x, rounds) for name, (model, x) in cases.items()]
    head = ["milliseconds of", "trace", "types", "spaces", "plan", "gather", "code", "to copy the new weights"]
    return "\n\n".join([networks, summary, table(head, parts), PHASE_NOTES])


def _phase_row(name: str, model: nn.Module, x: Tensor, rounds: int) -> list[str]:
    """The medians of the phases, and what copying the weights that are left takes at least."""
    phases(model, x)
    found = [phases(model, x) for _ in range(rounds)]
    left = sum(tensor.numel() for tensor in ours(model, x).parameters())
    weights, copies = torch.zeros(left), []
    for _ in range(rounds):
        start = time.process_time()
        weights.clone()
        copies.append(time.process_time() - start)
    medians = [statistics.median(turn[phase] for turn in found) for phase in found[0]]
    return [name, *(f"{1e3 * value:.2f}" for value in (*medians, statistics.median(copies)))]


def _number(ratio: float) -> str:
    return "–" if math.isnan(ratio) else f"{ratio:.1f}"


def profile(name: str) -> None:
    """Print where our time goes on one network, after a warm-up."""
    model = build(f"torchvision/{name}").eval()
    x = torch.randn(1, 3, 224, 224)
    ours(model, x)
    profiler = cProfile.Profile()
    profiler.runcall(ours, model, x)
    for order in ("cumulative", "tottime"):
        pstats.Stats(profiler).sort_stats(order).print_stats(35)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to halve a network, against the peers.")
    parser.add_argument("models", nargs="*", help="torchvision names; writes nothing if some are given")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds for each network")
    parser.add_argument("--depths", action="store_true", help="the series of depths only; writes nothing")
    parser.add_argument("--small", action="store_true", help="small networks and phases; writes their section alone")
    parser.add_argument("--profile", action="store_true", help="profile ours instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    if arguments.profile:
        for name in arguments.models:
            profile(name)
    elif arguments.depths:
        depth_section(arguments.rounds)
    elif arguments.small:
        start = time.perf_counter()
        text = small_section(arguments.rounds)
        command = f"python benchmarks/peers.py --small --rounds {arguments.rounds}"
        line = measured(command, time.perf_counter() - start, "torch-pruning", "torch-kirigami")
        write_section("small", f"{line}\n\n{text}")
    elif arguments.models:
        models_section(tuple(arguments.models), arguments.rounds)
    else:
        start = time.perf_counter()
        sections = [models_section(MODELS, arguments.rounds), depth_section(arguments.rounds)]
        packages = ("torchvision", "torch-pruning", "torch-kirigami")
        command = f"python benchmarks/peers.py --rounds {arguments.rounds}"
        line = measured(command, time.perf_counter() - start, *packages)
        write_section("peers", "\n\n".join([line, *sections]))


if __name__ == "__main__":
    main()

"""Time to halve a network: tracing, typing and compressing, against Torch-Pruning.

Both get their own copy of the same network, made outside of the timing, and take turns in one process with one
thread. Ours: `trace`, which copies the network and types it, then `compress` with `l2`. Theirs: `MagnitudePruner`,
which builds the dependency graph, then `step` with `MagnitudeImportance(p=2)`; it changes the network in place.
Both rank a channel by the weights that write and read it, and both leave the classifier's outputs alone. The clock
is processor time, which what else the machine does disturbs less; as in `timeit`, it runs without garbage collection.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import gc
import math
import pstats
import statistics
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch_pruning
from document import measured, table, write_section
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import graphsurgery as gs
from graphsurgery.models.specs import build
from graphsurgery.passes import compress

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
)


NOTES = """
Median of the repetitions in processor time, then the fastest and the slowest. Both start from a loaded network and an
input `[1, 3, 224, 224]` and remove half of the channels of every space. Ours leaves the network as it is and returns a
new one; Torch-Pruning changes it in place, and the copy that it gets is not part of its time. Torch-Pruning runs the
network on the input to find the dependencies; ours computes shapes only. For vit_b_16 the benchmark corrects an
attribute of the network after Torch-Pruning (`hidden_dim`), without which the result does not run.
""".strip()


def ours(model: nn.Module, x: Tensor) -> nn.Module:
    """Trace, type and compress to half the channels."""
    return compress.compress(gs.trace(model, x), keep=0.5, importance="l2").module


def theirs(model: nn.Module, x: Tensor) -> nn.Module:
    """Build the dependency graph and prune half the channels, in place.

    A VisionTransformer keeps its width in an attribute too, which is corrected by hand, as the authors advise.
    """
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[_classifier(model)],
    )
    pruner.step()
    if isinstance(model, VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels
    return model


def _classifier(model: nn.Module) -> nn.Module:
    """The last linear layer in order of definition."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


TOOLS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {"graphsurgery": ours, "Torch-Pruning": theirs}


@dataclass
class Timing:
    """Processor seconds of each repetition, millions of parameters that are left, and what went wrong, if anything."""

    seconds: list[float] = field(default_factory=list)
    parameters: float = math.nan
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.nan


def compare(name: str, repetitions: int) -> dict[str, Timing]:
    """Time both tools on one network, in turn, after one untimed round in which the results must run."""
    model = build(f"torchvision/{name}").eval()
    x = torch.randn(1, 3, 224, 224)
    timings = {tool: Timing() for tool in TOOLS}
    for repetition in range(repetitions + 1):
        for tool, halve in TOOLS.items():
            if not timings[tool].failure:
                _measure(timings[tool], halve, copy.deepcopy(model), x, warm=repetition > 0)
    return timings


def _measure(
    timing: Timing, halve: Callable[[nn.Module, Tensor], nn.Module], model: nn.Module, x: Tensor, *, warm: bool
) -> None:
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        small = halve(model, x)
        seconds = time.process_time() - start
        if warm:
            timing.seconds.append(seconds)
            return
        with torch.no_grad():
            assert small(x).shape == (1, 1000)
        timing.parameters = sum(p.numel() for p in small.parameters()) / 1e6
    except Exception as error:
        traceback.print_exc()
        timing.failure = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    finally:
        gc.enable()


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
    parser = argparse.ArgumentParser(description="Time to halve a network, against Torch-Pruning.")
    parser.add_argument("models", nargs="*", default=MODELS, help="torchvision names; writes nothing if some are given")
    parser.add_argument("--repetitions", type=int, default=9, help="timed rounds for each network")
    parser.add_argument("--profile", action="store_true", help="profile ours instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    if arguments.profile:
        for name in arguments.models:
            profile(name)
        return
    start = time.perf_counter()
    rows, failures = [], []
    for name in arguments.models:
        timings = compare(name, arguments.repetitions)
        mine, peer = timings["graphsurgery"], timings["Torch-Pruning"]
        rows.append([name, *(_cell(t) for t in (mine, peer)), _ratio(peer.median / mine.median)])
        rows[-1] += [f"{t.parameters:.1f} M" if not t.failure else "–" for t in (mine, peer)]
        failures += [f"- {name}, {tool}: {t.failure}" for tool, t in timings.items() if t.failure]
        print(" | ".join(rows[-1]), flush=True)
    print("\n".join(failures))
    if arguments.models == MODELS:
        head = ["network", "graphsurgery", "Torch-Pruning", "times faster", "left, ours", "left, theirs"]
        line = measured("python benchmarks/peers.py", time.perf_counter() - start, "torchvision", "torch-pruning")
        write_section("peers", "\n\n".join([line, table(head, rows), NOTES, *failures]))


def _cell(timing: Timing) -> str:
    if timing.failure:
        return "fails"
    return f"{timing.median * 1e3:.0f} ms ({min(timing.seconds) * 1e3:.0f}–{max(timing.seconds) * 1e3:.0f})"


def _ratio(ratio: float) -> str:
    return "–" if math.isnan(ratio) else f"{ratio:.1f}"


if __name__ == "__main__":
    main()

"""Does a process that traces and edits one network after another keep its memory? docs/benchmarks.md.

    python benchmarks/memory.py              # 100 networks
    python benchmarks/memory.py --rounds 20  # fewer; prints and writes no page

Linux only: the resident memory of the process after every ten networks. Each is built, traced, cut, widened, gated,
folded, stored, loaded and run; every seventh is exported and compared in ONNX Runtime too. Nobody collects by hand.
"""

from __future__ import annotations

import argparse
import gc
import re
import tempfile
import time
from pathlib import Path

import torch
from document import measured, table, write_section
from torch.fx import graph_module

import graphsurgery as gs
from graphsurgery.models import build, input_shape
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import fold, gate
from graphsurgery.passes.widen import widen

ROUNDS = 100
EXPORTED = 7
"""Each network of this number is exported too: another one in every turn."""
ALLOWED = 100
"""Megabytes that the memory may grow by after the first rounds."""
NETWORKS = (
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
    "paper/vgg11_bn",
    "torchvision/squeezenet1_1",
    "paper/resnet20",
    "torchvision/mnasnet0_5",
    "paper/resnet18",
    "paper/conv4",
    "torchvision/shufflenet_v2_x0_5",
    "paper/lenet5",
)
NOTE = f"""Each network is built, traced, cut, widened, gated, folded, stored, loaded and run, ten networks in turn;
every seventh is exported and compared in ONNX Runtime as well. Nobody collects by hand. Sources are those of generated
code, which fx and `linecache` keep. The highest memory may be {ALLOWED} MB above that after the first ten."""
_RESIDENT = re.compile(r"VmRSS:\s+(\d+) kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows, resident = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, options.rounds + 1):
            work(NETWORKS[number % len(NETWORKS)], Path(folder), export=number % EXPORTED == 0)
            if number % len(NETWORKS) == 0:
                resident.append(megabytes())
                sources, objects = len(graph_module._loader.eval_cache), len(gc.get_objects())
                rows.append([str(number), f"{resident[-1]:,.0f} MB", f"{objects:,}", str(sources)])
                print(*rows[-1], flush=True)
    text = table(["networks", "resident", "objects", "sources of code"], rows)
    if options.rounds == ROUNDS:
        command = measured("python benchmarks/memory.py", time.perf_counter() - began)
        write_section("rounds", "\n\n".join([command, text, NOTE]))
    if max(resident) > resident[0] + ALLOWED:
        raise SystemExit(f"the memory has grown from {resident[0]:.0f} to {max(resident):.0f} MB")


def work(spec: str, folder: Path, *, export: bool) -> None:
    """What a user does to one network."""
    shape = input_shape(spec) if spec.startswith("paper/") else (3, 64, 64)
    assert shape is not None
    example = torch.zeros(2, *shape)
    graph = gs.trace(build(spec).eval(), example)
    edited = fold(gate(widen(compress(graph, keep=0.5), by=1.25)))
    gs.save(edited, folder / "network.pt")
    loaded = gs.load(folder / "network.pt")
    with torch.no_grad():
        loaded(example)
    if export:
        gs.export_onnx(loaded, folder / "network.onnx")


def megabytes() -> float:
    """The resident memory of this process."""
    found = _RESIDENT.search(Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()

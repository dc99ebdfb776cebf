"""What does it take to start, and where do the seconds of `compress` go?

    python benchmarks/start.py
    python benchmarks/start.py --phases   # the second part

Seconds of the processor: of whole commands, next to the imports that they need; and of the parts of one command, on a
file of a small detector, in a process that has imported everything.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from document import DOCS, measured, table, write_section
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.models.specs import build
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.progress import Phase, listening
from graphsurgery.recipes.compression.shrink import Cut, cut
from graphsurgery.recipes.contracts.edit_checks import check_cut
from graphsurgery.recipes.contracts.moved import moved
from graphsurgery.surgery.channels.cost import cost

TURNS = 7
PROOF = ("comparing with ONNX Runtime", "checking the cut", "measuring by how much the outputs move")
"""The phases that only compare."""


class Detector(nn.Module):
    """Boxes and scores at two strides, on the layers of MobileNetV3-small: a million parameters."""

    def __init__(self) -> None:
        super().__init__()
        layers = build("torchvision/mobilenet_v3_small").features
        self.near, self.far = layers[:9], layers[9:12]
        self.heads = nn.ModuleList(nn.Conv2d(width, 3 * (4 + 20), 3, padding=1) for width in (48, 96))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[batch, anchors, 4]` and `[batch, anchors, 20]` of images `[batch, 3, height, width]`."""
        near = self.near(x)
        maps = [head(y).flatten(2) for head, y in zip(self.heads, (near, self.far(near)), strict=True)]
        found = torch.cat(maps, 2).transpose(1, 2).unflatten(2, (3, 24)).flatten(1, 2)
        return found[..., :4], found[..., 4:].sigmoid()


class Seconds:
    """Processor seconds of each phase, without those inside of it; told of phases."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.found: dict[str, float] = {}
        self.last = time.process_time()

    def began(self, phase: Phase) -> None:
        self.count()
        self.open.append(phase.name)

    def moved(self, phase: Phase) -> None:
        pass

    def ended(self, phase: Phase) -> None:  # noqa: ARG002
        self.count()
        self.open.pop()

    def count(self) -> None:
        """What has passed since the last call, to the innermost phase."""
        name, now = self.open[-1] if self.open else "counting parameters and MACs", time.process_time()
        self.found[name] = self.found.get(name, 0.0) + now - self.last
        self.last = now


def edit(file: Path, output: Path) -> dict[str, float]:
    """What `graphsurgery compress file -o output` does; the seconds of its phases."""
    seconds = Seconds()
    with listening(seconds):
        graph = import_onnx(file).graph
        small = cut(graph, Cut(keep=0.5))
        check_cut(graph, small, 0)
        moved(graph, small)
        cost(graph), cost(small)
        rewrite_onnx(file, small, output)
    seconds.count()
    return seconds.found


def phases() -> str:
    """The table of the phases, with the sums of the edit and of the proof."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, "detector.onnx"), Path(folder, "small.onnx")
        gs.export_onnx(gs.trace(Detector().eval(), torch.randn(2, 3, 96, 96)), file)
        first = edit(file, output)
        turns = [edit(file, output) for _ in range(TURNS)]
        size = file.stat().st_size / 1e6
    found = {name: statistics.median(turn[name] for turn in turns) for name in first}
    rows = [[name, f"{first[name]:.2f}", f"{value:.2f}"] for name, value in found.items()]
    for words, proves in (("**the edit**", False), ("**the proof**", True)):
        names = [name for name in found if (name in PROOF) == proves]
        sums = (sum(times[name] for name in names) for times in (first, found))
        rows.append([words, *(f"**{value:.2f}**" for value in sums)])
    note = f"`compress detector.onnx --keep 0.5` on a file of {size:.1f} MB (boxes and scores on MobileNetV3-small):"
    words = (
        "seconds of the processor, the first time and the median of the turns behind it, each without what it holds."
    )
    return f"{note} {words}\n\n{table(['phase', 'first', 'then'], rows)}"


def commands(folder: Path) -> dict[str, list[str]]:
    """What is started, by what the table calls it; the folder gets a small network in two files."""
    graph = gs.trace(build("paper/cnn?width=8").eval(), torch.randn(2, 1, 8, 8))
    gs.save(graph, folder / "small.pt")
    gs.export_onnx(graph, folder / "small.onnx")
    python, ours = [sys.executable, "-c"], [sys.executable, "-m", "graphsurgery.cli"]
    return {
        "`import torch`": [*python, "import torch"],
        "`import torch, torchvision, onnxruntime`": [*python, "import torch, torchvision, onnxruntime"],
        "`import graphsurgery`": [*python, "import graphsurgery as gs; gs.trace"],
        "`graphsurgery --help`": [*ours, "--help"],
        "`graphsurgery inspect missing.pt`": [*ours, "inspect", str(folder / "missing.pt")],
        "`graphsurgery inspect small.pt`": [*ours, "inspect", str(folder / "small.pt")],
        "`graphsurgery inspect small.onnx`": [*ours, "inspect", str(folder / "small.onnx")],
        "`graphsurgery compress small.onnx`": [
            *[*ours, "compress", str(folder / "small.onnx"), "--keep", "0.5"],
            *["-o", str(folder / "out.onnx"), "--overwrite"],
        ],
    }  # fmt: skip


def seconds(words: list[str]) -> float:
    """Of the processor, of one process and those that it starts."""
    before = os.times()
    subprocess.run(words, check=False, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", action="store_true")
    began = time.perf_counter()
    if parser.parse_args().phases:
        text = phases()
        line = measured("python benchmarks/start.py --phases", time.perf_counter() - began)
        print(text)
        write_section("phases", f"{line}\n\n{text}")
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        wanted = commands(Path(folder))
        for words in wanted.values():
            seconds(words)
        turns = [{name: seconds(words) for name, words in wanted.items()} for _ in range(TURNS)]
    first = next(iter(wanted))
    rows = []
    for name in wanted:
        ratio = statistics.median(turn[name] / turn[first] for turn in turns)
        rows.append([name, f"{statistics.median(turn[name] for turn in turns):.2f}", f"{ratio:.2f}"])
    head = ["what starts", "seconds of the processor", "of `import torch`"]
    text = f"{measured('python benchmarks/start.py', time.perf_counter() - began)}\n\n{NOTE}\n\n{table(head, rows)}"
    print(text)
    write_section("start", text, DOCS / "benchmarks.md")


NOTE = f"Each {TURNS} times, in turn, behind one start that is not counted; medians."


if __name__ == "__main__":
    main()

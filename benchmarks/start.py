"""What does it take to start? Seconds of the processor of whole commands, next to the imports that they need.

python benchmarks/start.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from document import DOCS, measured, table, write_section

import graphsurgery as gs
from graphsurgery.models.specs import build

TURNS = 7


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
    began = time.perf_counter()
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

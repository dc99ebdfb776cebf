"""How much memory do the commands take that edit a large `.onnx` file? docs/benchmarks.md.

    python benchmarks/onnx_memory.py                # files of 0.6 and 2.4 GB, in a temporary folder
    python benchmarks/onnx_memory.py --layers 4     # smaller ones; prints and writes no page

Linux only: the highest resident memory of a process, the mapped pages of files included, less that of the same command
on a small file.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from document import measured, table, write_section
from onnx import helper, numpy_helper

from graphsurgery.onnx.files.storage import ONE_FILE

WIDTH = 4096
LAYERS = (9, 36)
_HIGHEST = re.compile(r"VmHWM:\s+(\d+) kB")
EDITS = {
    "compress --keep 0.5": ("compress", "--keep", "0.5"),
    "compress --keep 0.9": ("compress", "--keep", "0.9"),
    "factorize --layer l3 --rank 0.1": ("factorize", "--layer", "l3", "--rank", "0.1"),
    "widen --by 1.25x": ("widen", "--by", "1.25x"),
}
NOTE = f"""A file is a chain of linear layers of {WIDTH:,} channels. The memory is the highest that is resident, with
the mapped pages of files, less that of the same command on 64 channels (Python, torch and ONNX Runtime: some
0.75 GB). All commands end with the proof in ONNX Runtime, which holds the new weights a second time. What `widen` makes
is larger than what it read, so the share of the new weights stands beside it. The singular value decomposition of one
layer takes some ten times that layer, in float64."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    options = parser.parse_args()
    began = time.perf_counter()
    rows = []
    for layers, outside in itertools.product(options.layers, (False, True)):
        weights = 4 * WIDTH**2 * layers
        if weights > ONE_FILE and not outside:
            continue
        with tempfile.TemporaryDirectory() as folder:
            small, large = (chain(Path(folder), width, layers, outside=outside) for width in (64, WIDTH))
            rows += [row(words, small, large, weights, outside=outside) for words in EDITS]
    text = table(["weights", "lie", "command", "peak", "of the weights", "of the new weights", "seconds"], rows)
    command = "python benchmarks/onnx_memory.py"
    print(text)
    if tuple(options.layers) == LAYERS:
        write_section("memory", "\n\n".join([measured(command, time.perf_counter() - began), text, NOTE]))


def chain(folder: Path, width: int, layers: int, *, outside: bool) -> Path:
    """A file of linear layers of one width with ReLUs between them, `[batch, 64]` to `[batch, 10]`."""
    generator = np.random.default_rng(0)
    sizes = [64, *[width] * (layers + 1), 10]
    nodes, tensors, value = [], [], "x"
    for at, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weight = generator.standard_normal((outputs, inputs), dtype=np.float32) / np.float32(np.sqrt(inputs))
        tensors += [numpy_helper.from_array(weight, f"l{at}.weight")]
        tensors += [numpy_helper.from_array(np.zeros(outputs, np.float32), f"l{at}.bias")]
        nodes.append(helper.make_node("Gemm", [value, f"l{at}.weight", f"l{at}.bias"], [f"l{at}"], transB=1))
        value = f"l{at}"
        if at < layers + 1:
            nodes.append(helper.make_node("Relu", [value], [f"r{at}"]))
            value = f"r{at}"
    given, gives = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", 64), (value, 10))
    )
    graph = helper.make_graph(nodes, "chain", [given], [gives], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / f"{width}.onnx"
    onnx.save_model(model, str(path), save_as_external_data=outside, location=f"{path.name}.data")
    return path


def row(edit: str, small: Path, large: Path, weights: int, *, outside: bool) -> list[str]:
    """What one command took."""
    base, _ = peak(edit, small)
    highest, seconds = peak(edit, large)
    output = _output(large)
    new = sum(part.stat().st_size for part in large.parent.glob(f"{output.name}*"))
    taken = highest - base
    cells = [f"{weights / 1e9:.1f} GB", "beside the file" if outside else "in the file", f"`{edit}`"]
    return [*cells, f"{taken / 1e9:.2f} GB", f"{taken / weights:.2f}x", f"{taken / new:.2f}x", f"{seconds:.0f}"]


def peak(edit: str, path: Path) -> tuple[int, float]:
    """The highest resident memory of a command in bytes, and its seconds."""
    output = _output(path)
    for old in path.parent.glob(f"{output.name}*"):
        old.unlink()
    words = [sys.executable, "-m", "graphsurgery.cli", EDITS[edit][0], str(path), *EDITS[edit][1:], "-o", str(output)]
    began = time.perf_counter()
    process = subprocess.Popen([*words, "--quiet"], env={**os.environ, "OMP_NUM_THREADS": "1"})
    highest = 0
    while process.poll() is None:
        highest = max(highest, *map(int, _HIGHEST.findall(Path(f"/proc/{process.pid}/status").read_text())), 0)
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{edit} ended with {process.returncode}")
    return highest * 1024, time.perf_counter() - began


def _output(path: Path) -> Path:
    return path.with_name(f"new-{path.name}")


if __name__ == "__main__":
    main()

"""Half the latency of an `.onnx` file, by measuring, and its accuracy back without labels. On Fashion-MNIST.

    python benchmarks/latency.py

A Conv-2 learns 12,000 labelled images and is exported. From then on there is only that file, and 24,000 other images
without labels: `graphsurgery compress` halves its latency and lets it mimic itself. A second table compares what the
cost table predicts with what whole files take. Writes a section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from document import measured, table, write_section
from torch.utils.data import TensorDataset

from graphsurgery.cli import run
from graphsurgery.models.loading import open_model
from graphsurgery.onnx.exporting import export_onnx
from graphsurgery.onnx.importing import import_onnx
from graphsurgery.onnx.runtime.latency import Timing, measure_pair
from graphsurgery.onnx.runtime.sessions import open_session
from graphsurgery.passes.compress import compress
from graphsurgery.recipes.compression.cost_table import FileBench, costly, find_step, largest_step, measure_table
from graphsurgery.recipes.train import train
from graphsurgery.training.data import Data, load_data
from graphsurgery.training.loop.plan import TrainingPlan
from graphsurgery.training.loop.progress import SilentReporter

TRAINING = TrainingPlan(batch_size=64, optimizer="adam", lr=1e-3, device="cpu")
SHARES = (0.75, 0.5, 0.25)
NETWORKS = ("torchvision/resnet18", "torchvision/mobilenet_v3_small")


def one_seed(options: argparse.Namespace, data: Data, seed: int, folder: Path) -> dict[str, Any]:
    """Train, export, compress by the command, and measure both files."""
    assert isinstance(data.train, TensorDataset)
    x, y = data.train.tensors
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    known, unknown = order[: options.labelled], order[options.labelled : options.labelled + options.unlabelled]
    few = Data(
        TensorDataset(x[known], y[known]), data.validation, data.test, data.input_shape, data.classes, "fashion-mnist"
    )
    plan = TrainingPlan(**{**vars(TRAINING), "epochs": options.epochs, "seed": seed})
    graph = train(options.model, few, plan, reporter=SilentReporter()).graph
    before, after = folder / f"{seed}.onnx", folder / f"{seed}-small.onnx"
    export_onnx(graph, before)
    images = folder / f"images-{seed}"
    images.mkdir()
    np.save(images / "images.npy", x[unknown].numpy())
    command = ["compress", str(before), "--target", "latency=0.5x", "--calib", str(images), "--recover", "mimic"]
    shown = io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(shown):
        code = run([*command, "--seed", str(seed), "--device", "cpu", "-o", str(after), "--json"])
    if code:
        raise SystemExit(f"seed {seed}: compress failed with {code}")
    document = json.loads(shown.getvalue())
    rows = {row["name"]: row["test"] for row in document["outcome"]["rows"]}
    return {
        "seconds": time.perf_counter() - began,
        "table": document["latency"]["table"],
        "step": document["latency"]["round_to"],
        "steps": document["latency"]["steps"],
        "attempts": document["latency"]["attempts"],
        "promise": document["promise"],
        "again": measure_pair(before, after, Timing()),
        "sizes": [space.size for space in import_onnx(after).graph.spaces],
        "was": [space.size for space in graph.spaces],
        "before": accuracy(before, data),
        "after": accuracy(after, data),
        "cut": rows["cut"]["agreement"],
        "agreement": rows["mimicked"]["agreement"],
    }


def accuracy(path: Path, data: Data) -> float:
    """The share of the test images that a file classifies as labelled, in ONNX Runtime."""
    assert isinstance(data.test, TensorDataset)
    session = open_session(path, threads=1)
    name = session.get_inputs()[0].name
    x, y = data.test.tensors
    found = [session.run(None, {name: part.numpy()})[0].argmax(1) for part in x.split(500)]
    return float((np.concatenate(found) == y.numpy()).mean())


def predictions(spec: str, folder: Path) -> list[list[str]]:
    """For several widths of a network, what its table predicts and what whole files take."""
    graph = open_model(spec, example_shape=(3, 64, 64))
    file = folder / "whole.onnx"
    export_onnx(graph, file)
    bench = FileBench(file, graph, Timing())
    spaces = [space for space in graph.spaces if space.outer]
    step = find_step(bench, costly(graph, spaces), largest=largest_step([space.size for space in spaces])).step
    grid = min(step, 8)
    costs = measure_table(bench, {space.name: space.size for space in spaces}, grid)
    rows = []
    for share in SHARES:
        sizes = {s.name: min(s.size, max(grid, round(share * s.size / grid) * grid)) for s in spaces}
        export_onnx(compress(graph, sizes), folder / "cut.onnx", check=False)
        pair = measure_pair(file, folder / "cut.onnx", Timing())
        predicted = costs.microseconds(sizes) / costs.microseconds({})
        rows.append(
            [
                f"`{spec}`, {share:g} of every space",
                f"{predicted:.3f}x",
                f"{pair.ratio:.3f}x [{pair.low:.3f}, {pair.high:.3f}]",
                f"{costs.networks} in {costs.seconds:.0f} s",
                str(step),
            ]
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--model", default="paper/conv2?in_channels=1&image_size=28")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--labelled", type=int, default=12000)
    parser.add_argument("--unlabelled", type=int, default=24000)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    data = load_data(options.data)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            found.append(one_seed(options, data, seed, Path(folder)))
            print(seed, {key: value for key, value in found[-1].items() if key != "table"}, flush=True)
        rows = [row for spec in NETWORKS for row in predictions(spec, Path(folder))]
    command = f"python benchmarks/latency.py --data {options.data} --seeds {options.seeds}"
    head = ["", "test accuracy", "agreement", "latency", "ratio", "asked"]
    text = "\n\n".join(
        [
            measured(command, time.perf_counter() - began, "onnxruntime"),
            note(options, found),
            table(head, [row for seed, one in enumerate(found) for row in result(seed, one)]),
            "What the table predicts for a network, against whole files timed in turn, at 3x64x64:",
            table(["", "predicted", "measured", "networks in the table", "step rewarded"], rows),
        ]
    )
    print(text)
    write_section("latency", text)


def result(seed: int, one: dict[str, Any]) -> list[list[str]]:
    """The rows of one seed: the file before, after the cut, and after recovery."""
    pair = one["again"]
    times = [f"{t.median:.3f} ms [{t.low:.3f}, {t.high:.3f}]" for t in (pair.before, pair.after)]
    return [
        [f"seed {seed}: original file", f"{one['before']:.2%}", "", times[0], "", ""],
        ["cut", "", f"{one['cut']:.1%}", "", "", ""],
        [
            "mimicked, without labels",
            f"{one['after']:.2%}",
            f"{one['agreement']:.1%}",
            times[1],
            f"{pair.ratio:.3f}x [{pair.low:.3f}, {pair.high:.3f}]",
            "0.5x",
        ],
    ]


def note(options: argparse.Namespace, found: list[dict[str, Any]]) -> str:
    """What was run, and what was chosen."""
    chosen = "; ".join(
        f"seed {seed}: {' '.join(map(str, one['sizes']))} in place of {' '.join(map(str, one['was']))}, in steps of "
        f"{one['step']} (measured: {one['steps']['step']}), table of {one['table']['networks']} networks in "
        f"{one['table']['seconds']:.0f} s, whole command {one['seconds'] / 60:.1f} min"
        for seed, one in enumerate(found)
    )
    return (
        f"`{options.model}`, {options.epochs} epochs on {options.labelled:,} labelled images, exported. "
        f"`graphsurgery compress m.onnx --target latency=0.5x --calib DIR --recover mimic` sees that file and "
        f"{options.unlabelled:,} other images without labels. Latencies are medians in ONNX Runtime with 95 % "
        f"intervals, {Timing()}, measured once more after the command. Agreement is with the original, on a tenth of "
        f"the unlabelled images that is held out. Channels of the spaces: {chosen}."
    )


if __name__ == "__main__":
    main()

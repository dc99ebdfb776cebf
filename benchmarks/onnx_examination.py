"""Export one network in both dialects, read the files back, cut them in place, and write what was found as JSON.

python benchmarks/onnx_examination.py torchvision/resnet18 found.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path
from typing import Any

import torch
from examination import example_shapes, without_download
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.graph import ModelGraph
from graphsurgery.models.specs import build
from graphsurgery.onnx.editing.rewriting import rewrite_onnx
from graphsurgery.onnx.exporting import check_onnx
from graphsurgery.onnx.exporting.exporter import quiet
from graphsurgery.onnx.importing import Imported, import_onnx
from graphsurgery.passes.compress import compress
from graphsurgery.recipes.contracts.subjects import calibrate, draw_inputs, randomize

OPSET = 17
Writer = Callable[[nn.Module, Sequence[Tensor], Path, bool], None]


def examine_files(spec: str) -> dict[str, Any]:
    """What becomes of a network's `.onnx` files, by dialect; of one that cannot be built or traced the reason alone."""
    torch.manual_seed(0)
    try:
        module = build(without_download(spec)).eval()
        shapes = example_shapes(spec, module)
        randomize(module, 0)
        graph = gs.trace(module, [torch.empty(2, *shape, device="meta") for shape in shapes])
    except SurgeryError as cause:
        return {"refused": one_line(cause, 400)}
    calibrate(module, graph.inputs, torch.float32, 0)
    graph = gs.trace(module, [torch.empty(2, *shape, device="meta") for shape in shapes])
    found = {dialect: _of_dialect(module, graph, write) for dialect, write in DIALECTS.items()}
    parameters = sum(p.numel() for p in module.parameters())
    return {"inputs": shapes, "parameters": parameters, "spaces": len(graph.spaces), "dialects": found}


def write_torchscript(module: nn.Module, inputs: Sequence[Tensor], path: Path, free: bool) -> None:
    """A file by the exporter that records a run."""
    names = [f"input_{i}" for i in range(len(inputs))]
    axes = {name: {0: "batch"} for name in names} if free else None
    torch.onnx.export(
        module, tuple(inputs), path, dynamo=False, opset_version=OPSET, input_names=names, dynamic_axes=axes
    )


def write_dynamo(module: nn.Module, inputs: Sequence[Tensor], path: Path, free: bool) -> None:
    """A file by the exporter that follows the program."""
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in inputs) if free else None
    torch.onnx.export(
        module, tuple(inputs), path, dynamo=True, external_data=False, dynamic_shapes=shapes, verbose=False
    )


DIALECTS: dict[str, Writer] = {"TorchScript": write_torchscript, "dynamo": write_dynamo}


def _of_dialect(module: nn.Module, graph: ModelGraph, write: Writer) -> dict[str, Any]:
    """Export, import and cut, each as far as the one before it came."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        began = time.perf_counter()
        free, why, exported = _export(module, graph, write, path)
        found: dict[str, Any] = {"free": free, "export_seconds": time.perf_counter() - began}
        if not path.is_file():
            return {**found, "not exported": why}
        found["exported"] = exported
        began = time.perf_counter()
        try:
            imported = import_onnx(path)
        except Exception as cause:  # a mistake of the importer is a finding too
            return {**found, "not imported": _words(cause)}
        found |= {"import_seconds": time.perf_counter() - began, **_described(imported)}
        batches = (1, 3) if free else (1,)
        try:
            found["deviation"] = check_onnx(imported.graph, path, batches=batches, raise_on_failure=False).deviation
        except Exception as cause:
            return {**found, "not run": _words(cause)}
        return {**found, "cut": _cut(graph, imported, path, batches)}


def _export(module: nn.Module, graph: ModelGraph, write: Writer, path: Path) -> tuple[bool, str, float]:
    """Write the file, with a free batch where the exporter manages one.

    Returns:
        Whether the batch is free; why there is no file; how far the file lies from the network.
    """
    why = ""
    for free, batch in ((True, 2), (False, 1)):
        try:
            with quiet(), torch.no_grad():
                write(module, draw_inputs(graph.inputs, batch, 0, torch.float32), path, free)
            return free, "", _runs(path, graph, 3 if free else 1)
        except Exception as cause:  # the exporters raise whatever their parts raise
            why = _words(cause)
            path.unlink(missing_ok=True)
    return False, why, 0.0


def _runs(path: Path, graph: ModelGraph, batch: int) -> float:
    """Have ONNX Runtime run a file, and find how far it lies from the network."""
    check = check_onnx(graph, path, batches=(batch,), rtol=1e-3, raise_on_failure=False)
    if not check.holds:
        raise SurgeryError(f"the exported file deviates by {check.deviation:.1e} from the network")
    return check.deviation


def _described(imported: Imported) -> dict[str, Any]:
    network: Any = imported.module
    kinds = {operator.index: operator.kind for operator in network.plan.operators}
    return {
        "operators": len(imported.file.operators),
        "spaces": len(imported.graph.spaces),
        "opaque": dict(Counter(kinds[index] for index in network.plan.opaque)),
    }


def _cut(graph: ModelGraph, imported: Imported, path: Path, batches: Sequence[int]) -> dict[str, Any]:
    """The file with the first half of every space, next to the network with the first half of every space.

    Spaces that one of the two lacks stay whole in both.
    """
    output = path.with_name("small.onnx")
    ours, theirs = _first_half(graph, imported.graph)
    document: dict[str, Any] = {"spaces": [len(ours), sum(space.outer for space in graph.spaces)]}
    try:
        expected = compress(graph, ours)
    except SurgeryError as cause:
        return {**document, "nothing": _words(cause)}
    try:
        written = rewrite_onnx(path, compress(imported.graph, theirs), output)
        document |= {"as imported": written.deviation, "bytes": [f.stat().st_size for f in (path, output)]}
        document["deviation"] = check_onnx(expected, output, batches=batches, raise_on_failure=False).deviation
    except Exception as cause:
        document["refused"] = _words(cause)
    return document


def _first_half(*graphs: ModelGraph) -> list[dict[str, Any]]:
    """What stays of each: by the names of the spaces where they have the same, else by their order.

    Where some have other names, a name with a number (`stem:2`) may be another part of its layer, and stays whole.
    """
    sizes = [{space.name: space.size for space in graph.spaces if space.outer} for graph in graphs]
    first = sizes[0]
    if all(first.items() <= other.items() for other in sizes):
        same = list(first)
    elif len({tuple(each.values()) for each in sizes}) == 1:
        return [{name: list(range(max(1, size // 2))) for name, size in each.items()} for each in sizes]
    else:
        same = [n for n, size in first.items() if ":" not in n and all(other.get(n) == size for other in sizes)]
    return [{name: list(range(max(1, first[name] // 2))) for name in same} for _ in graphs]


def _words(cause: BaseException) -> str:
    return f"{type(cause).__name__}: {one_line(cause, 300)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Examine the .onnx files of one network, and write what was found.")
    parser.add_argument("spec", help="such as torchvision/resnet18")
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options.output.write_text(dumps(examine_files(options.spec)), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Examine one network in this process, and write what was found as JSON; `coverage.py` runs it for each network.

python benchmarks/examination.py torchvision/resnet18 found.json
python benchmarks/examination.py --families families.json
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import graphsurgery as gs
from graphsurgery.errors import SurgeryError, one_line
from graphsurgery.models.specs import build, input_shape
from graphsurgery.recipes.contracts.doctor import examine
from graphsurgery.recipes.contracts.subjects import skeleton

Shape = tuple[int, ...]

SIDES = (64, 96, 128, 160, 192)
# Smaller than a window they would run, but as another network.
_WINDOWED = (".swin_transformer", ".maxvit")
_CLIPS: dict[str, Shape] = {
    "r3d_18": (3, 8, 32, 32),
    "mc3_18": (3, 8, 32, 32),
    "r2plus1d_18": (3, 8, 32, 32),
    "swin3d_t": (3, 8, 64, 64),
    "swin3d_s": (3, 8, 64, 64),
    "swin3d_b": (3, 8, 64, 64),
}


def examine_spec(spec: str, *, onnx: bool, only: Sequence[str] = ()) -> dict[str, Any]:
    """What `examine` finds on the network that a spec names, as JSON-like data, and on which inputs it was examined.

    Of a network that graphsurgery refuses to build or to trace the data hold the reason alone, under `refused`. With
    `only`, some contracts are measured and not the others.
    """
    torch.manual_seed(0)
    try:
        module = build(without_download(spec)).eval()
        shapes = example_shapes(spec, module)
        graph = gs.trace(skeleton(module), [torch.empty(2, *shape, device="meta") for shape in shapes])
        report = examine(graph, module, onnx=onnx, only=only)
    except SurgeryError as cause:
        return {"refused": one_line(cause, 400)}
    return {"inputs": shapes, "core": ".detection" in _package(spec), **report.as_dict()}


def without_download(spec: str) -> str:
    """The spec with random weights in the backbone too, where torchvision would download them."""
    if not any(kind in _package(spec) for kind in (".detection", ".segmentation")) or "weights" in spec:
        return spec
    return f"{spec}{'&' if '?' in spec else '?'}weights_backbone=none"


def example_shapes(spec: str, module: nn.Module) -> list[Shape]:
    """The shape of one example of every input, without the batch: small where the network takes small images.

    Of the sides 64 to 192 and the one that the network is made for it is the smallest that runs in both modes.
    """
    package, name = _package(spec), spec.partition("?")[0].partition("/")[2]
    if ".optical_flow" in package:
        return [(3, 128, 128), (3, 128, 128)]
    usual = _CLIPS.get(name) if package else None
    usual = usual or input_shape(spec) or (3, 224, 224)
    if not spec.startswith(("torchvision/", "timm/")) or ".video" in package or any(w in package for w in _WINDOWED):
        return [usual]
    return [smallest_side(module, usual)]


def smallest_side(module: nn.Module, usual: Shape) -> Shape:
    """`[channel, height, width]` with the smallest side that a network takes in both modes, on meta tensors."""
    for side in SIDES:
        shape = (*usual[:-2], side, side)
        if side < min(usual[-2:]) and _takes(module, shape):
            return shape
    return usual


def _takes(module: nn.Module, shape: Shape) -> bool:
    shadow = skeleton(module).to("meta")
    try:
        with torch.no_grad():
            for training in (False, True):
                shadow.train(training)(torch.empty(2, *shape, device="meta"))
    except Exception:  # whatever the network's own code raises
        return False
    return True


def _package(spec: str) -> str:
    """The module of torchvision that builds a network; empty for other sources."""
    source, _, name = spec.partition("?")[0].partition("/")
    if source != "torchvision":
        return ""
    from torchvision.models import get_model_builder

    try:
        return get_model_builder(name).__module__
    except ValueError:
        return ""


def smallest_of_families() -> dict[str, str]:
    """The model with the fewest parameters of every module of timm, its own test models left out."""
    import timm

    smallest: dict[str, str] = {}
    for family in timm.list_modules():
        sizes = {name: _parameters(name) for name in timm.list_models(module=family) if not name.startswith("test_")}
        if sizes:
            smallest[family] = min(sizes, key=lambda name: (sizes[name], name))
    return smallest


def _parameters(name: str) -> int:
    import timm

    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Examine one network and write what was found as JSON.")
    parser.add_argument("spec", nargs="?", help="such as torchvision/resnet18")
    parser.add_argument("output", type=Path)
    parser.add_argument("--families", action="store_true", help="write the smallest model of each family of timm")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false", help="leave ONNX Runtime out")
    parser.add_argument("--only", action="append", default=[], help="a contract; leaves the others out")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.families:
        found = {"smallest": smallest_of_families()}
    else:
        found = examine_spec(options.spec, onnx=options.onnx, only=options.only)
    options.output.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()

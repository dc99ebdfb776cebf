"""An `.onnx` file loses half of its channels, and stays the file that it was: names, opset, metadata."""

from __future__ import annotations

import onnx
import torch

import graphsurgery as gs
from graphsurgery.models import build


def main() -> None:
    """Write a file as somebody else would have, cut it, and compare what is left with the cut network."""
    torch.manual_seed(0)
    gs.export_onnx(gs.trace(build("paper/resnet20?width=8"), torch.randn(2, 3, 32, 32)), "model.onnx")

    graph = gs.import_onnx("model.onnx").graph
    print(f"{len(graph.spaces)} spaces, {gs.cost(graph).macs:,} multiply-accumulates")
    small = gs.compress(graph, 0.5)
    check = gs.rewrite_onnx("model.onnx", small, "small.onnx")
    print(f"{gs.cost(small).macs:,} are left; ONNX Runtime gives what PyTorch gives, to {check.deviation:.0e}")
    before, after = (onnx.load(name).graph for name in ("model.onnx", "small.onnx"))
    assert [node.name for node in before.node] == [node.name for node in after.node]


if __name__ == "__main__":
    main()

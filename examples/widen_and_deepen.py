"""A trained network becomes wider and deeper without a change of what it computes, and can be trained on."""

from __future__ import annotations

import torch

import graphsurgery as gs
from graphsurgery.models import build


def main() -> None:
    """Grow a ResNet, and measure by how much its outputs move."""
    torch.manual_seed(0)
    graph = gs.trace(build("paper/resnet20?width=8").double().eval(), torch.randn(2, 3, 32, 32))
    wide = gs.widen(graph, 1.5)
    deep = gs.deepen(wide, "stages.2", count=2)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = graph(x)
        for name, grown in (("wide", wide), ("wide and deep", deep)):
            moved = float((grown(x) - expected).abs().max() / expected.abs().max())
            print(
                f"{name}: {gs.cost(graph).parameters:,} to {gs.cost(grown).parameters:,}, outputs moved by {moved:.0e}"
            )
            assert moved < 1e-12
    gs.save(deep, "deep.pt")


if __name__ == "__main__":
    main()

"""The contracts of a slimmable network."""

from __future__ import annotations

import torch

from graphsurgery.network.outputs.naming import run
from graphsurgery.passes.compress import compress
from graphsurgery.recipes.contracts.bench import Bench
from graphsurgery.recipes.contracts.contract import Contract
from graphsurgery.surgery.channels.slimming import Slimmable, Width
from graphsurgery.surgery.deviation import apart

NARROWEST = 0.25


def slimmed(bench: Bench) -> list[Contract]:
    """One set of weights at the whole width, and at two narrow ones and a width for each space.

    Narrow networks are run on the shared weights, and with weights of their own.
    """
    made: list[Slimmable] = []

    def whole() -> float:
        made.append(Slimmable(bench.subject, min_width=NARROWEST))
        return apart(bench.outputs(made[0].extract(1.0)), bench.outputs(bench.subject))

    found = [bench.contract("slim at width 1 = original", whole)]
    if made:
        generator = torch.Generator().manual_seed(bench.seed)
        shares = NARROWEST + (1 - NARROWEST) * torch.rand(len(made[0].spaces), generator=generator)
        widths = (NARROWEST, 0.5, dict(zip(made[0].spaces, shares.tolist(), strict=True)))
        name = "slim at width w = compressed to the first channels"
        found.append(bench.contract(name, lambda: max(_deviation(bench, made[0], width) for width in widths)))
    return found


def _deviation(bench: Bench, slimmable: Slimmable, width: Width) -> float:
    """How far a width lies from the network cut to its first channels, on shared weights and on its own."""
    sizes = slimmable.sizes(width)
    keep = {name: list(range(size)) for name, size in sizes.items() if size < slimmable.spaces[name].size}
    expected = bench.outputs(compress(bench.subject, keep) if keep else bench.subject)
    on_shared = run(slimmable.at(width), bench.x, bench.seed)
    return max(apart(on_shared, expected), apart(bench.outputs(slimmable.extract(width)), expected))

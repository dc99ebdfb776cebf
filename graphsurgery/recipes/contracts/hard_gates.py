"""The contract of gates that are 0 or 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from graphsurgery.errors import SurgeryError
from graphsurgery.passes.compress import compress
from graphsurgery.passes.gate import gate, gateable
from graphsurgery.recipes.contracts.bench import Bench
from graphsurgery.recipes.contracts.contract import Contract
from graphsurgery.surgery.deviation import apart
from graphsurgery.surgery.gates import gates, why_nothing

OPEN = 100.0
"""The `loc` of a gate that is open; a closed one has its negative."""


def hard_gates(bench: Bench) -> list[Contract]:
    """Closed gates are removed channels: exact for spaces that no operator mixes, stated for the others."""
    every = [s for s in bench.subject.spaces if s.chosen and s.scalable and s.readers]
    try:
        gated = gateable(bench.subject)
    except SurgeryError:  # the gate pass says why
        gated = every
    left = f"{len(every) - len(gated)} spaces cannot be gated" if len(gated) < len(every) else ""
    exact = [s.name for s in gated if not s.mixed]
    mixed = [s.name for s in gated if s.mixed]
    name = "gates 0 or 1 = compressed"
    found = []
    if exact or not mixed:
        contract = bench.contract(name, lambda: _deviation(bench, exact))
        found.append(replace(contract, note="; ".join(filter(None, (left, contract.note)))))
    if mixed:
        contract = bench.contract(f"{name}, mixed spaces", lambda: _deviation(bench, mixed))
        operators = sorted({m.partition(" at ")[0] for s in gated for m in s.mixed})
        note = f"not exact: {len(mixed)} spaces are mixed by {', '.join(operators)}"
        found.append(replace(contract, note="; ".join(filter(None, (note, contract.note)))))
    return found


def _deviation(bench: Bench, names: Sequence[str]) -> float:
    """How far a network with half of these gates closed is from the one without those channels."""
    if not names:
        raise SurgeryError(f"gate: no space can be gated; {why_nothing(bench.subject)}")
    gated = gate(bench.subject, names, seed=bench.seed)
    generator = torch.Generator().manual_seed(bench.seed)
    kept: dict[str, Tensor] = {}
    for name, module in gates(gated).items():
        kept[name] = torch.randperm(module.channels, generator=generator)[: math.ceil(module.channels / 2)]
        module.loc.data.fill_(-OPEN)
        module.loc.data[kept[name]] = OPEN
    expected = bench.outputs(gated)
    return apart(bench.outputs(compress(gated, kept)), expected)

"""The contract of the export."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from graphsurgery.graph import ModelGraph
from graphsurgery.recipes.contracts.bench import Bench
from graphsurgery.recipes.contracts.contract import Contract, NothingToCompareError, measure

if TYPE_CHECKING:
    from graphsurgery.onnx.exporting.checking import OnnxCheck

BLURRED = 1e-2


def exported(bench: Bench, cut: ModelGraph | None) -> Contract:
    """The compressed network in ONNX Runtime, in float32.

    Two computations in float32 may lie twice as far apart as each lies from the exact one.
    """
    from graphsurgery.onnx.exporting.checking import check_onnx
    from graphsurgery.onnx.exporting.exporter import export_onnx

    network = cut or bench.subject
    rounding = 0.0
    check: OnnxCheck | None = None

    def deviation() -> float:
        nonlocal rounding, check
        rounding = bench.rounding(network)
        if rounding > BLURRED:
            raise NothingToCompareError(f"rounding to float32 alone changes its outputs by {rounding:.1%}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            export_onnx(network, path)
            check = check_onnx(network, path, batches=(1, 3), raise_on_failure=False)
            return check.deviation

    contract = measure("ONNX Runtime = PyTorch, compressed", deviation)
    notes = [bench.note] if bench.note.startswith("on a cut") else []
    if cut is None:
        notes.append("not compressed: nothing can be removed")
    if contract.allowed is not None and contract.allowed < 2 * rounding <= 2 * BLURRED:
        contract = replace(contract, allowed=2 * rounding)
        notes.append(f"rounding to float32 changes the outputs by {rounding:.1e}")
    if contract.status == "fails" and check is not None and check.first is not None:
        notes.append(f"the first node that differs is {check.first}")
    return replace(contract, note="; ".join([*notes, *filter(None, [contract.note])]))

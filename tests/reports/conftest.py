import dataclasses

import pytest

from graphsurgery.recipes.outcome import Check, GateEpoch, Outcome, Row
from graphsurgery.training.loop.run import EpochRecord


@pytest.fixture(scope="session")
def outcome():
    """A merge with explicit numbers and every part that a report can show."""
    return Outcome(
        title="Merge of two networks",
        metric="accuracy",
        higher_is_better=True,
        rows=(
            Row("parent 1", {"accuracy": 0.9722}, {"accuracy": 0.9694}, 272_474, 40_553_000, 1.84, 60),
            Row("parent 2", {"accuracy": 0.9667}, {"accuracy": 0.9722}, 272_474, 40_553_000, 1.84, 60),
            Row("ensemble", {"accuracy": 0.9778}, {"accuracy": 0.975}, epochs=120, note="two networks run"),
            Row("fine-tuned", {"accuracy": 0.98333}, {"accuracy": 0.9806}, 268_210, 40_001_000, 1.83, 180),
        ),
        curves=tuple(
            EpochRecord(stage, epoch, {"total": 1 / epoch}, {"accuracy": 1 - 0.2 / epoch})
            for stage in ("gates", "fine-tune")
            for epoch in (1, 2, 3)
        ),
        gates=tuple(
            GateEpoch(epoch, 0.01 * epoch, 1 - 0.1 * epoch, 0.5, {"layer1.0.conv1": 1 - 0.2 * epoch, "conv1": 1.0})
            for epoch in (1, 2, 3, 4)
        ),
        origins={"conv1": (6, 10), "layer1.0.conv1": (9, 7)},
        checks=(Check("cut = gated", 3.1e-16, 1e-10), Check("ONNX Runtime = PyTorch", 2.3e-4, 1e-4)),
        verdict="The merged network is better than both parents.",
        config={"data": "digits", "training": {"epochs": 30, "widths": [16, 32]}},
        seconds=161.4,
        files={"checkpoint": "merged.pt"},
    )


@pytest.fixture(scope="session")
def hostile(outcome):
    """The same with names that try to be markup wherever a name can be."""
    bad = "<script src=http://a.b/c></script>\"'&$x^2$ [red]|*\x1b[31m\udc80"
    return dataclasses.replace(
        outcome,
        title=bad,
        verdict=bad,
        rows=(dataclasses.replace(outcome.rows[0], name=bad, note=bad), *outcome.rows[1:]),
        curves=(EpochRecord(bad, 1, {"total": 0.5, bad: 0.25}, {"accuracy": 0.5}),),
        gates=(GateEpoch(1, 0.0, 0.75, 0.5, {bad: 0.75}),),
        origins={bad: (1, 2, 0)},
        checks=(Check(bad, float("nan"), 1e-10),),
        config={bad: {bad: bad}},
        files={bad: bad},
    )

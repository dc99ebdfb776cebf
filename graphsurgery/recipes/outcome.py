"""What a recipe found out: plain data for tables, reports and `--json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Generic, NamedTuple, TypeVar

from graphsurgery.errors import CheckFailedError
from graphsurgery.graph import ModelGraph
from graphsurgery.training.loop.run import EpochRecord
from graphsurgery.training.objectives.tasks import Objective, rank_of


@dataclass(frozen=True)
class Row:
    """One network in the result table.

    Attributes:
        name: what it is, such as `parent 1` or `cut`.
        test: metrics on the test data, such as `{"accuracy": 0.97, "loss": 0.1}`.
        validation: the same on the validation data.
        parameters, macs: its size, and multiply-adds per example; None where several networks run.
        latency: ONNX Runtime milliseconds for one example, where measured.
        epochs: training epochs spent on it so far, with those of everything that it is made of.
        training_macs: multiply-adds of all forward passes of what learnt then, without what teachers answered.
        seconds: of the processor, for what of that training was done in this run.
        note: what a reader should know.
        train: the metrics on the training data, where they were measured.
    """

    name: str
    test: Mapping[str, float]
    validation: Mapping[str, float]
    parameters: int | None = None
    macs: int | None = None
    latency: float | None = None
    epochs: float | None = None
    training_macs: float | None = None
    seconds: float | None = None
    note: str = ""
    train: Mapping[str, float] = field(default_factory=dict)

    def rank(self, metric: str, *, higher_is_better: bool) -> tuple[float, float]:
        """Its place among others on validation data, higher is better; of equal scores the smaller loss counts."""
        score, loss = self.validation[metric], self.validation.get("loss", 0.0)
        return rank_of(score, higher_is_better=higher_is_better), rank_of(loss, higher_is_better=False)


@dataclass(frozen=True)
class Check:
    """A contract that was measured: `measured` is a relative deviation, and holds if it is at most `allowed`."""

    name: str
    measured: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.measured <= self.allowed


def required(check: Check) -> Check:
    """The contract of a pass, where it holds: nothing is trained, or written, behind one that does not.

    Raises:
        CheckFailedError: it does not hold.
    """
    if not check.holds:
        raise CheckFailedError(f"{check.name}: {check.measured:.1e}, allowed {check.allowed:.0e}; nothing was written")
    return check


@dataclass(frozen=True)
class GateEpoch:
    """How far the gates were closed after an epoch: expected open shares, in all and by space."""

    epoch: int
    strength: float
    expected: float
    budget: float
    spaces: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """Everything that a run found out; recipes that make more than a network have kinds of their own.

    Attributes:
        title: what was done, in a few words.
        rows: the result table, in order.
        metric: the metric that decides, such as `accuracy` or `mse`; `higher_is_better` says which way.
        curves: every epoch of every stage.
        gates: how the gates closed.
        origins: how many channels each space of the result took from each parent.
        widths: of a slimmable network, the width of every row.
        checks: contracts that were measured.
        verdict: one plain sentence.
        config: what was run, resolved.
        seconds: wall-clock time.
        files: what was written, by what it is.
    """

    title: str
    rows: tuple[Row, ...]
    metric: str
    higher_is_better: bool
    curves: tuple[EpochRecord, ...] = ()
    gates: tuple[GateEpoch, ...] = ()
    origins: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    widths: tuple[float, ...] = ()
    checks: tuple[Check, ...] = ()
    verdict: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    files: Mapping[str, str] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    def require(self, command: str) -> None:
        """Refuse to say that all went well where a contract does not hold.

        Raises:
            CheckFailedError: it names those that do not.
        """
        failing = [check.name for check in self.checks if not check.holds]
        if failing:
            raise CheckFailedError(f"{command}: {len(failing)} checks fail: {', '.join(failing)}; see the lines above")

    def as_dict(self) -> dict[str, Any]:
        """JSON-like form of what every outcome has."""
        return asdict(Outcome(**{one.name: getattr(self, one.name) for one in fields(Outcome)}))


Found = TypeVar("Found", bound=Outcome, covariant=True)


class Result(NamedTuple, Generic[Found]):
    """What a recipe returns: the network, and everything that was found out on the way."""

    graph: ModelGraph
    outcome: Found


def at_chance(metrics: Mapping[str, float], classes: int | None, examples: int) -> bool:
    """Whether an accuracy is what guessing one of the classes gives, or less, to two standard errors."""
    if not classes or "accuracy" not in metrics or examples < 1:
        return False
    guess = 1 / classes
    return metrics["accuracy"] <= guess + 2 * math.sqrt(guess * (1 - guess) / examples)


def comparison(name: str, score: float, others: Mapping[str, float], objective: Objective) -> str:
    """One plain sentence on how much better or worse a network is than others, by the test metric."""
    sign = 1.0 if objective.higher_is_better else -1.0
    words = []
    for other, theirs in others.items():
        gain = sign * (score - theirs)
        size = (
            f"{abs(gain) * 100:.2f} points" if objective.score == "accuracy" else f"{abs(gain):.4g} {objective.score}"
        )
        relation = "as good as" if gain == 0 else f"{size} better than" if gain > 0 else f"{size} worse than"
        words.append(f"{relation} {other}")
    *most, last = words
    return f"On test data {name} is {', '.join(most)}{' and ' if most else ''}{last}."

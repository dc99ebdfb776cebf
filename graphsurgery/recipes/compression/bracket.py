"""What is known to be too slow and what to be fast enough, and the cut to try between the two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

NEAR = 0.95
"""A cut is found that takes at least this part of what is allowed."""
_LIMIT, _AIM = 0.98, 0.965
"""Two percent are left to what varies between measurements."""
_NARROW = 2e-3
_MARGIN = 0.1


@dataclass(frozen=True, order=True)
class Trial:
    """A cut that was measured.

    Attributes:
        share: of the time that a prediction leaves; 1 is the whole network. More of it keeps more channels.
        part: what was measured, over what is allowed.
    """

    share: float
    part: float

    @property
    def fast(self) -> bool:
        """Whether it is fast enough, with two percent to spare."""
        return self.part <= _LIMIT


@dataclass
class Bracket:
    """The search for the largest share that is fast enough, by measurements that may be wrong.

    Times follow the prediction only roughly: they have costs that no cut saves, kernels that like some widths better,
    and noise. So a share is too slow or fast enough only by a measurement. Between the two, the next is where a power
    of the share meets the aim, and the middle wherever that has not halved the bracket.

    Args:
        whole: part of the whole network, above 1.
        least: the smallest share that can be asked for.
    """

    whole: float
    least: float
    trials: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial | None:
        """The largest share that was fast enough."""
        return max((trial for trial in self.trials if trial.fast), default=None)

    @property
    def slow(self) -> Trial:
        """The smallest share above the best that was too slow; what was too slow below it was measured wrongly."""
        above = self.least if self.best is None else self.best.share
        too_slow = [trial for trial in self.trials if not trial.fast and trial.share > above]
        return min(too_slow, default=Trial(1.0, self.whole))

    def shares(self) -> Iterator[float]:
        """Shares to measure, one after the other; what was measured is put into `trials` in between.

        Ends where a share takes `NEAR` of what is allowed, where no other can lie between the two sides, or where the
        least is too slow.
        """
        width = math.inf
        if not self.trials:
            yield max(self.least, min(_AIM / self.whole, 1.0))
        while True:
            best, slow = self.best, self.slow
            if best is not None and best.part >= NEAR:
                return
            if best is None and any(trial.share <= self.least for trial in self.trials):
                return
            low = self.least if best is None else best.share
            left = slow.share - low
            if left <= _NARROW * slow.share:
                return
            yield self._between(best, slow, low) if left <= width / 2 or best is None else (low + slow.share) / 2
            width = left

    def _between(self, best: Trial | None, slow: Trial, low: float) -> float:
        """The share at which a power through two measurements meets the aim.

        What is slower than the whole network says nothing about how much a cut saves.
        """
        first = slow if best is None else best
        second = Trial(1.0, self.whole) if best is None or slow.part >= self.whole else slow
        middle = (low + slow.share) / 2
        if first.share <= 0 or first.part <= 0 or first.part >= second.part or first.share >= second.share:
            return middle
        power = math.log(second.part / first.part) / math.log(second.share / first.share)
        share = second.share * math.exp(math.log(_AIM / second.part) / power)
        if best is None:
            return max(self.least, share)
        margin = _MARGIN * (slow.share - low)
        return min(max(share, low + margin), slow.share - margin)

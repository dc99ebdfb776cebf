"""Which single weights stay, and what a ticket starts from: plain data.

kept         where living weights start (mask-1 actions)
lr-rewind    where they ended; the learning rate begins anew (Renda et al., arXiv:2003.02389)
rewind       where they were at the start, or at an early step (Frankle & Carbin, arXiv:1803.03635)
reinit       at new draws: the control of a ticket
reshuffle    at each other's first values, within a tensor
constant     at plus or minus the standard deviation of their tensor's first values

dead               what dead weights are (mask-0 actions)
zero               0
freeze             their first values
variant-1          0 where they moved toward 0 in training, else their first values
variant-2          the same, and living weights that moved toward 0 start at 0
variant-N-random   as many zeros of each tensor, at places drawn by the seed
variant-N-reversed zeros where weights moved away from 0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphsurgery.errors import SurgeryError

SCOPES = ("layer", "global")
CRITERION_NAMES = (
    *("large_final", "small_final", "large_init", "small_init", "large_init_large_final", "small_init_small_final"),
    *("magnitude_increase", "movement", "random", "large_final_same_sign", "large_final_diff_sign", "snip", "grad"),
)
"""The functions of `selection` that score weights."""
KEPT = ("lr-rewind", "rewind", "reinit", "reshuffle", "constant")
DEAD = ("zero", "freeze", *(f"variant-{n}{rule}" for n in (1, 2) for rule in ("", "-random", "-reversed")))


@dataclass(frozen=True)
class Selection:
    """Which weights stay.

    Attributes:
        criterion: which weights stay: large_final, small_final, large_init, small_init, large_init_large_final,
            small_init_small_final, magnitude_increase, movement, random, large_final_same_sign, large_final_diff_sign,
            snip or grad.
        scope: each tensor loses its share (layer), or all weights compete for as many places (global).
        floor: with global, the share of each tensor that stays whatever its scores (at least one weight).
        linear: factor on the rate at which linear layers are pruned; 0 leaves them whole.
        conv: the same for convolutions.
        output: the same for the last layers, behind which no others stand, of whatever kind.
        seed: breaks ties.
    """

    criterion: str = "large_final"
    scope: str = "layer"
    floor: float = 0.01
    linear: float = 1.0
    conv: float = 1.0
    output: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.criterion not in CRITERION_NAMES:
            raise SurgeryError(f"criterion {self.criterion!r} is unknown; choose from {', '.join(CRITERION_NAMES)}")
        if self.scope not in SCOPES:
            raise SurgeryError(f"selection: scope is {self.scope!r}; choose from {', '.join(SCOPES)}")
        for name in ("floor", "linear", "conv", "output"):
            if not 0 <= getattr(self, name) <= 1:
                raise SurgeryError(f"selection: {name} is {getattr(self, name)}, expected a number from 0 to 1")
        if self.scope != "global" and self.floor != Selection.floor:
            raise SurgeryError("selection: floor is for weights that all compete; give --scope global, or leave it out")


@dataclass(frozen=True)
class Restart:
    """How a ticket starts.

    Attributes:
        kept: what living weights start from: where they ended, where they began, new draws, each other's, a constant.
        keep_sign: whether living weights start with the sign that they had first (or last, by `lr-rewind`). Without it
            `reinit` and `reshuffle` bring signs of their own, and the others get random ones.
        dead: what dead weights are: zero, freeze, variant-1 or variant-2 (also with -random and -reversed).
        shuffled: whether the mask is shuffled within each tensor: the other control of a ticket.
        rescaled: whether living weights are multiplied by how many there are of each that lives.
    """

    kept: str = "lr-rewind"
    keep_sign: bool = True
    dead: str = "zero"
    shuffled: bool = False
    rescaled: bool = False

    def __post_init__(self) -> None:
        if self.kept not in KEPT:
            raise SurgeryError(f"restart: {self.kept!r} is unknown; living weights take {', '.join(KEPT)}")
        if self.dead not in DEAD:
            raise SurgeryError(f"restart: {self.dead!r} is unknown; dead weights take {', '.join(DEAD)}")


TICKET = Restart("rewind")
CONTROLS: Mapping[str, Restart] = {
    "reinit": Restart("reinit", keep_sign=False),
    "shuffle": Restart("rewind", shuffled=True),
    "reinit, sign kept": Restart("reinit"),
    "reshuffle": Restart("reshuffle", keep_sign=False),
    "reshuffle, sign kept": Restart("reshuffle"),
    "constant": Restart("constant", keep_sign=False),
    "constant, sign kept": Restart("constant"),
    "rewind": TICKET,
    "lr-rewind": Restart("lr-rewind"),
    **{dead: Restart("rewind", dead=dead) for dead in DEAD if dead != "zero"},
}
"""What a ticket is compared with, by name."""

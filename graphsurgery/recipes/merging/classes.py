"""Parents that were trained on other classes, or on the same in another order, answering for those of the data."""

from __future__ import annotations

from collections.abc import Sequence

from graphsurgery.errors import SurgeryError
from graphsurgery.graph import ModelGraph
from graphsurgery.passes.relabel import relabel


def answering(parents: Sequence[ModelGraph], text: str, count: int | None) -> list[ModelGraph]:
    """The parents, each with a logit for every class of the data.

    Args:
        parents: the networks.
        text: for each parent the class of each of its logits, between slashes: numbers, and ranges of them, as in
            `all/0-4,6-9`; `all` are those of the data in their order. Empty for such parents alone.
        count: how many classes the data have; None for regression.

    Raises:
        SurgeryError: it is no such text, or as for `relabel`.
    """
    if not text:
        return list(parents)
    if count is None:
        raise SurgeryError("--classes: the data have no classes, so that no output stands for one")
    lists = [part.strip() for part in text.split("/")]
    if len(lists) != len(parents):
        raise SurgeryError(
            f"--classes: {len(lists)} lists for {len(parents)} parents; give one for each, between slashes, or all"
        )
    found = []
    for position, (parent, part) in enumerate(zip(parents, lists, strict=True), 1):
        try:
            found.append(parent if part == "all" else relabel(parent, numbers_in(part), count))
        except SurgeryError as cause:
            raise type(cause)(f"parent {position}: {cause}") from cause
    return found


def numbers_in(text: str) -> list[int]:
    """Whole numbers and ranges of them, both ends included: `0-4,6` are 0, 1, 2, 3, 4 and 6.

    Raises:
        SurgeryError: something else stands there.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise SurgeryError(f"--classes: {part.strip()!r} is no class; give numbers and ranges, such as 0-4,6-9")
        found.extend(range(int(first), int(last if dash else first) + 1))
    return found

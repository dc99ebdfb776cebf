"""`graphsurgery models`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from graphsurgery.cli.options import SHOWN, Shown
from graphsurgery.progress import phase

if TYPE_CHECKING:
    from graphsurgery.cli.output import Screen


def models(word: str | None = None, /, *, shown: Shown = SHOWN) -> None:
    """List the ways to name a model; with a word, the models that have it in their name.

    Parameters
    ----------
    word
        A part of a name, such as resnet or timm/; of a whole name its options are shown too.
    """
    from graphsurgery.cli.output import Screen

    screen = Screen(shown)
    if word is None:
        _show_kinds(screen)
        return
    with phase("looking at the names of all sources"):
        from graphsurgery.models.search import about, matching

        found = matching(word)
    known = about(word if word in found else found[0]) if word in found or len(found) == 1 else None
    for spec in found:
        screen.plain(spec)
    if known is not None:
        screen.line("options", ", ".join(known.options) or "none")
        if known.weights:
            screen.line("weights", ", ".join(known.weights))
        if known.shape is not None:
            screen.line("input", "x".join(map(str, known.shape)))
    document = {"models": found, "about": None if known is None else asdict(known)}
    screen.finish(document, "inspect", found[0] if known is None else known.spec)


def _show_kinds(screen: Screen) -> None:
    """The ways to name a model, and the networks of the papers."""
    from graphsurgery.models.search import paper_listing
    from graphsurgery.models.sources.catalogue import spec_listing

    kinds, networks = spec_listing(), paper_listing()
    screen.listing(kinds)
    screen.listing(networks)
    screen.finish({"models": kinds.as_dicts(), "paper": networks.as_dicts()}, "models", "resnet18")

"""`graphsurgery data`."""

from __future__ import annotations

from graphsurgery.cli.options import SHOWN, Shown


def data(*, shown: Shown = SHOWN) -> None:
    """List the data that --data takes, and the options of data specs.

    Options stand behind a question mark, with & between them, in quotes: 'imagefolder:photos?size=64&crop=false'.
    """
    from graphsurgery.cli.output import Screen
    from graphsurgery.training.data.catalogue import data_listing, option_listing

    screen = Screen(shown)
    kinds, options = data_listing(), option_listing()
    screen.listing(kinds)
    screen.listing(options)
    document = {"data": kinds.as_dicts(), "options": options.as_dicts()}
    screen.finish(document, "train", "paper/cnn", "--data", "digits", "-o", "cnn.pt")

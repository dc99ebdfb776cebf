"""The libraries that specs of the form `scheme:name` take networks from."""

from __future__ import annotations

from graphsurgery.models.libraries.hugging_face import HUGGING_FACE
from graphsurgery.models.libraries.library import Library
from graphsurgery.models.libraries.others import SEGMENTATION, ULTRALYTICS

LIBRARIES = {library.scheme: library for library in (HUGGING_FACE, SEGMENTATION, ULTRALYTICS)}


def library_of(spec: str) -> tuple[Library, str] | None:
    """The library of a spec, and the name in it, without options; None for a spec of another kind."""
    scheme, colon, name = spec.partition("?")[0].partition(":")
    return (LIBRARIES[scheme], name) if colon and scheme in LIBRARIES else None

"""A network in a file: described by a closed vocabulary, written whole, read without executing anything."""

from graphsurgery.checkpoint.files import is_checkpoint, load, read_metadata, save

__all__ = [
    "is_checkpoint",
    "load",
    "read_metadata",
    "save",
]

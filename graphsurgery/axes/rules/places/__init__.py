"""Rules of operators to which places on an axis mean something: slices, lookups, orders, writes, tables, regions."""

from graphsurgery.axes.rules.places import embeddings, indexing, ordered, regions, written

__all__ = ["embeddings", "indexing", "ordered", "regions", "written"]

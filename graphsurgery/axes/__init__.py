"""Axes and their types: the algebra, maps of channels, and how types are inferred."""

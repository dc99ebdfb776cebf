"""Recipes for one set of weights that works at every width."""

"""Recipes that make a network smaller, to a target of size, latency or data."""

"""Passes: each takes typed graphs and returns a new one."""

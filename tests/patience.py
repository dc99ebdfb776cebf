"""How long a process that a test has started may take: no test depends on a clock, this only ends one that hangs."""

PATIENCE = 1800
"""Seconds: a hundred times what any of them takes on an idle machine."""

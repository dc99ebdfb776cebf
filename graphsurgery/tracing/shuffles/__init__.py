"""Shuffles of channels, taken out of a traced network by permuting weights."""

"""Masks of single weights: kept, trained under, chosen, and the channels that they leave dead."""

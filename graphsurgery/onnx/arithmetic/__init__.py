"""A quantised file in integer arithmetic, as one processor or another computes it."""

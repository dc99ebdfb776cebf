"""A network rebuilt with other channels: every tensor gathered, every size that was computed from a width anew."""

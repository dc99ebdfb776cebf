"""Several networks as one: matched, side by side, segment by segment, or averaged."""

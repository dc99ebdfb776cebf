"""Which channels stay: importance, choices inside groups, targets, and what a width costs."""

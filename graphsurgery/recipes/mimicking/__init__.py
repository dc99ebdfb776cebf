"""A student learns what teachers say: the plan and the recipe."""

"""Several trained networks become one of the size of one: the ways to do it, and what they have to beat."""

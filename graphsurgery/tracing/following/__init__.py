"""The forward of a module, followed: the tracer, what stands for values, and what Python and torch ask of it."""

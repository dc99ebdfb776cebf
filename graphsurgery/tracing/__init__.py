"""From a module to a typed graph: the tracer, its proxies, the normal form and the two modes."""

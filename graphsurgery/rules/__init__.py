"""Rules: how each operator relates the types of what it reads and writes."""

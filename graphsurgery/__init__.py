"""Surgery on trained neural networks."""

"""Edited weights back in the class that a network came from: tensors, sizes of layers, and numbers in attributes."""

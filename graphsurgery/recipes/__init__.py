"""Recipes: whole procedures, with their controls, that end in a network and an outcome."""

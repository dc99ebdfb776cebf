"""Recipes that look for masks: lottery tickets and supermasks."""

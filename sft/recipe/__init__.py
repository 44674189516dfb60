"""Recipes: what can be set, read strictly, and refused before a model is loaded."""

"""Trainings of one recipe with different values, one after the other."""

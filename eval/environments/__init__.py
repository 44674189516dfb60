"""A running program, and an agent that operates it."""

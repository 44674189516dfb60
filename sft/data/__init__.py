"""Data files to checked tasks and steps: tables, rows, screenshots, and what must not leak."""

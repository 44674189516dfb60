"""`python -m sft.compute`: the ledger of what trainings and rollouts took, and the report over it."""

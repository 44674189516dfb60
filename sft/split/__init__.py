"""`python -m sft.split`: which tasks train, validate and test."""

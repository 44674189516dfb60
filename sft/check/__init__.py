"""`python -m sft.check`: what a person should know about data before training."""

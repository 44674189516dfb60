"""`python -m sft.export`: a trained adapter to a model folder of its own, and to the Hub."""

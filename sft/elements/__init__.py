"""`python -m sft.elements`: the texts on each screenshot, found from its pixels."""

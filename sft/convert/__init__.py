"""`python -m sft.convert`: data in other formats to the data this package reads."""

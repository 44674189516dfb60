"""Steps to batches: tokens, packing, order, and the collator."""

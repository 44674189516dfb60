"""Foreign formats to data of the contract: what `sft.convert` reads and writes."""

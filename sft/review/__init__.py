"""What `sft.check` tells a person about data before training."""

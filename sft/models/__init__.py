"""Model families: processors, base models, quantisation, LoRA, and attention over packed sequences."""

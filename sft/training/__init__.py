"""Around the trainer: checkpoints saved whole, resuming, preemption, watching, and what a training leaves behind."""

"""Nothing lost when a machine dies: checkpoints, preemption, resume, and a watch over training."""

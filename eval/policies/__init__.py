"""What answers a step: a model, a server, the recording, or nothing. Knows no scoring."""

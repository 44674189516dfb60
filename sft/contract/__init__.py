"""The data contract: files that a user brings to validated tasks and steps."""

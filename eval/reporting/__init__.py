"""What a scored rollout leaves for readers: published files, tables, report."""

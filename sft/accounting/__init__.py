"""What runs cost: the compute ledger, what is measured for it, and the report over it."""

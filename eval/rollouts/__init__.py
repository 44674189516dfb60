"""How tasks are walked with a policy, and the folder in which a rollout is kept."""

"""When a step is right, and every number that follows from it. Knows no policy and no report."""

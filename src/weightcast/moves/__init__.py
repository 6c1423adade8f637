"""HOW: weights go to their forecast and back, in as few passes over memory as we can."""

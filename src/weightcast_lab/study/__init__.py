"""The study: where a forecast helps, each method at its own best learning rate."""

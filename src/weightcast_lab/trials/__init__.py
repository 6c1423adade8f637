"""The second study: every method at its own best rate and momentum, under two schedules."""

"""Why a forecast works, and how far to look, on a quadratic and on a network."""

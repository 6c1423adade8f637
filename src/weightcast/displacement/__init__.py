"""WHAT: the displacement of each optimizer, and how far to walk along it."""

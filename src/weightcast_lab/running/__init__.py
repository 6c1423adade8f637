"""Runs: what is computed, how, where, and how it gets on."""

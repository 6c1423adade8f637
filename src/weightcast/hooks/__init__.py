"""WHEN: hooks of model and optimizer tell a forecast when to move the weights."""

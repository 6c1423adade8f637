"""How results look, whatever kind of experiment they are of."""

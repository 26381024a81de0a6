"""Weights that a run starts from, of this and other programs."""

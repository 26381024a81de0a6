"""Trained weights in the layouts of other programs."""

"""Checkpoints: atomic, verified, and written in the background."""

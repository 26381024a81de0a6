"""Checkpoints: written in the background, whole or not at all."""

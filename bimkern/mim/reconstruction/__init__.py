"""Predictions laid out over the image, measured and drawn."""

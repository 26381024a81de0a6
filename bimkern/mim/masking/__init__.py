"""Maskers: which patches are masked, per image and per stage."""

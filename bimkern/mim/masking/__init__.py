"""Maskers: which patches are hidden, per image and per stage."""

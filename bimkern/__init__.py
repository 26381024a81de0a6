"""Kernels, arena and a thin trainer that make masked image modelling cheap to pre-train."""

__version__ = "0.1.0"

"""Fused kernels, an activation arena and a small trainer that make masked image modeling cheap to pre-train."""

from bimkern import openmp

__version__ = "0.1.0"

openmp.prepare()

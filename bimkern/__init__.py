"""Kernels, arena and a thin trainer that make masked image modelling cheap to pre-train."""

from bimkern import openmp

__version__ = "0.1.0"

openmp.prepare()

"""The ops: what masked image modelling computes beyond a plain network, each usable on its own."""

from bimkern.ops._backend import backends
from bimkern.ops.gather_tokens import gather_tokens

__all__ = ["backends", "gather_tokens"]

"""Triton kernels, one file per op with the stem of the op; imported at the first call on a GPU."""

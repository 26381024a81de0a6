"""Stand-in for NVIDIA's apex, whose kernels need a GPU: the documented interface over plain torch."""

from . import optimizers as optimizers

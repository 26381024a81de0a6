"""Stand-in for xformers, whose kernels need a GPU: the documented interface over plain torch."""

__version__ = "0.0.0+standin"

"""The compiled module, made for one torch and one Python: found and checked once, or the reason why it cannot serve."""

import functools
import importlib
from typing import Any

import torch

from bimkern.arena.errors import ArenaUnavailable


@functools.cache
def native() -> Any:
    """Import the module.

    Raises:
        ArenaUnavailable: it was not built, not for this Python, or not for this torch.
    """
    try:
        module = importlib.import_module("bimkern.arena._arena")
    except ImportError as error:
        if error.name == "bimkern.arena._arena":
            raise ArenaUnavailable("the arena was not built for this Python (install with a C++ compiler)") from error
        raise ArenaUnavailable(f"the arena cannot be loaded: {error}") from error
    check_version(module.torch_version)
    return module


def check_version(built_for: str) -> None:
    """Refuse a module that hooks another torch's allocator: that is a C++ class, and its layout may have changed."""
    if built_for != torch.__version__.partition("+")[0]:
        raise ArenaUnavailable(
            f"the arena was built for torch {built_for}, this is {torch.__version__}: "
            "install bimkern again, with --no-build-isolation"
        )

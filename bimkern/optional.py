"""Optional packages: imported where they are asked for, and a reason in one line where they cannot be used."""

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from bimkern.errors import BimkernError

TORCHVISION_WITHOUT_OPERATORS = "operator torchvision::nms does not exist"
_TORCHVISION_REMEDY = (
    "torchvision was built for CUDA, or for another torch: install it from the index that torch came from; "
    "beside a CPU torch, `import bimkern.torchvision_compat` before it helps too"
)


class Unusable(BimkernError, RuntimeError):
    """An optional package cannot be used here; the message is the reason."""


def load(name: str) -> ModuleType:
    """Import an optional package.

    Raises:
        Unusable: it is not there, or cannot be imported.
    """
    if sys.modules.get(name) is not None:  # every training step asks; None: Python was told not to find it
        return importlib.import_module(name)
    try:
        with _quiet():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            raise Unusable("not installed") from error
        raise Unusable(f"cannot be imported: {error}") from error
    except Exception as error:
        reason = first_line(error)
        remedy = f" ({_TORCHVISION_REMEDY})" if TORCHVISION_WITHOUT_OPERATORS in reason else ""
        raise Unusable(f"cannot be imported: {reason}{remedy}") from error


def load_timm(need: str) -> ModuleType:
    """Import timm, also beside a torchvision that was built for another torch.

    Args:
        need: how a message begins, such as "RandAugment needs timm".

    Raises:
        Unusable: it is not there, or cannot be imported.
    """
    try:
        load("bimkern.torchvision_compat")  # before timm
        return load("timm")
    except Unusable as reason:
        raise Unusable(f"{need}: {reason}; pip install 'bimkern[timm]'") from reason


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what a package warns of while it loads: the caller tells in one line what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

"""The compiled module, made for one torch and one Python: found, tested or built, once; or the reason for none."""

import functools
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from bimkern.arena import build
from bimkern.arena.errors import ArenaUnavailable
from bimkern.arena.self_test import load

logger = logging.getLogger("bimkern.arena")

_PACKAGE = Path(__file__).resolve().parent
_once = threading.Lock()
_SELF_TEST_S = 120  # it takes as long as importing torch; what hangs has failed


def native() -> Any:
    """Return the module; the first call may take as long as building it.

    Raises:
        ArenaUnavailable: there is none for this torch and this Python, and none could be built.
    """
    with _once:
        module, reason = _found()
    if module is None:
        raise ArenaUnavailable(reason)
    return module


@functools.cache
def _found() -> tuple[Any, str]:
    try:
        return load(_locate(_PACKAGE)), ""
    except ArenaUnavailable as error:
        return None, str(error)
    except ImportError as error:
        return None, f"the arena cannot be loaded: {error}; {build.REMEDY}"


def _locate(folder: Path) -> Path:
    """Return the module for this release of torch, else one for another that passes its self-test, else build one.

    It hooks torch's allocator, a C++ class, whose layout torch promises to no other release and seldom changes.
    """
    if (path := folder / build.module_name()).exists() or (path := build.built()).exists():
        return path
    for path in sorted(folder.glob(build.module_name(release="*"))):
        if passes_self_test(path):
            logger.warning(
                "the arena %s is for another torch than %s, and passed its self-test; %s",
                *(path.name, torch.__version__, build.REMEDY),
            )
            return path
    return build.build()


def passes_self_test(path: Path) -> bool:
    """Use the module in a process of its own, which may crash."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("self_test.py")), str(path)]
    try:
        return subprocess.run(command, capture_output=True, timeout=_SELF_TEST_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False

"""The compiled module, made for one torch and one Python: found, tested or built, once; or the reason for none."""

import functools
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
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


def native(*, may_build: bool = True) -> Any:
    """Return the module; the first call may take as long as building it.

    Raises:
        ArenaUnavailable: there is none for this torch and this Python, and none could be built, or may be.
    """
    with _once:
        if (module := _here()) is not None:
            return module
        if not may_build:
            build.configure()
            raise ArenaUnavailable("it is not built yet; the first use builds it")
        module, reason = _built()
    if module is None:
        raise ArenaUnavailable(reason)
    return module


@functools.cache
def _here() -> Any:
    """Return the first module that can be loaded; None if there is none."""
    for path in _candidates(_PACKAGE):
        try:
            return load(path)
        except ImportError as error:
            logger.warning("the arena %s cannot be loaded: %s; %s", path, error, build.REMEDY)
    return None


@functools.cache
def _built() -> tuple[Any, str]:
    """Return a module that is built now, or the reason for none."""
    try:
        return load(build.build()), ""
    except ArenaUnavailable as error:
        return None, str(error)
    except ImportError as error:
        return None, f"the arena cannot be loaded: {error}; {build.REMEDY}"


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield modules for this release of torch, first the one built here, then those for others that pass a self-test.

    It hooks torch's allocator, a C++ class, whose layout torch promises to no other release and seldom changes.
    """
    if (path := build.built()) is not None:
        yield path
    if (own := folder / build.module_name()).exists():
        yield own
    for path in sorted(set(folder.glob(build.module_name(release="*"))) - {own}):
        if passes_self_test(path):
            logger.warning(
                "the arena %s is for another torch than %s, and passed its self-test; %s",
                *(path.name, torch.__version__, build.REMEDY),
            )
            yield path


def passes_self_test(path: Path) -> bool:
    """Use the module in a process of its own, which may crash."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("self_test.py")), str(path)]
    try:
        return subprocess.run(command, capture_output=True, timeout=_SELF_TEST_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False

"""The compiled module, made for one torch and one Python: found or built, once; or the reason for none."""

import functools
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from bimkern.arena import build
from bimkern.arena.errors import ArenaUnavailable
from bimkern.arena.self_test import load

logger = logging.getLogger("bimkern.arena")

_once = threading.Lock()
_SELF_TEST_S = 120  # it takes as long as importing torch; what hangs has failed


def native(*, may_build: bool = True) -> Any:
    """Return the module; the first call may take as long as building it.

    Raises:
        ArenaUnavailable: there is none for this torch and this Python, and none could be built, or may be.
    """
    with _once:
        if not may_build and build.would_build():
            raise ArenaUnavailable("it is not built yet; the first use builds it")
        module, reason = _module()
    if module is None:
        raise ArenaUnavailable(reason)
    return module


@functools.cache
def _module() -> tuple[Any, str]:
    """Return the module, or the reason for none."""
    try:
        return load(build.build()), ""
    except ArenaUnavailable as error:
        reason = str(error)
    except ImportError as error:
        reason = f"the arena cannot be loaded: {error}; {build.REMEDY}"
    # It hooks torch's allocator, a C++ class, whose layout torch promises to no other release and seldom changes.
    for path in filter(passes_self_test, build.for_other_torches()):
        logger.warning("the arena %s is for another torch, and passed its self-test; %s", path, reason)
        return load(path), ""
    return None, reason


def passes_self_test(path: Path) -> bool:
    """Use the module in a process of its own, which may crash."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("self_test.py")), str(path)]
    try:
        return subprocess.run(command, capture_output=True, timeout=_SELF_TEST_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False

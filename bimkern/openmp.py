"""How idle OpenMP threads wait: set for our commands before torch loads the runtime, left alone in other programs.

By default a thread without work spins for milliseconds. Beside another busy process it takes a core away from the
thread that all others wait for, and a step takes many times as long.
"""

import os
import re
import sys
from itertools import pairwise

_POLICY = "OMP_WAIT_POLICY"
# GNU's runtime takes its count of spins before the policy. So few last for microseconds: between the many short regions
# of a step a thread is then ready without being woken, and a neighbor waits for none. Intel's takes the policy.
OURS = {_POLICY: "PASSIVE", "GOMP_SPINCOUNT": "1000"}
_SETTINGS = (*OURS, "KMP_BLOCKTIME", "KMP_LIBRARY")
_COMMANDS = ("bimkern", "bench")  # packages whose modules `python -m` runs
_MODULE = re.compile(r"-[bBdEiIOPqsSuvx]*m(.*)")  # -m NAME, -mNAME, -um NAME
_SCRIPT = re.compile(r"(.*/)?bimkern-[a-z]+")  # as the installation names them
_MARK = "BIMKERN_OMP_WAIT_POLICY"  # tells processes that a command starts that the setting is not the user's


def prepare() -> None:
    """Let idle threads of this process and its children sleep if it runs a command of ours; a user's setting stays.

    Call this where a package is imported, before its modules are.
    """
    if _is_command() and not _settings():
        os.environ.update(OURS)
        os.environ[_MARK] = "1"


def describe() -> str:
    """Name the settings that the runtime reads when torch is imported, and who made them."""
    settings = ", ".join(f"{name}={value}" for name, value in _settings().items())
    if not settings:
        return f"{_POLICY} is not set: idle threads spin"
    if _MARK in os.environ:
        return f"{settings}, set by our commands; a program that imports bimkern has to set it itself"
    return f"{settings}, from the environment"


def _settings() -> dict[str, str]:
    return {name: os.environ[name] for name in _SETTINGS if name in os.environ}


def _is_command() -> bool:
    """Return whether Python is looking for a module of ours to run (until it is found, argv[0] is "-m") or a script."""
    if any(map(_SCRIPT.fullmatch, sys.argv[:1])):
        return True
    if sys.argv[:1] != ["-m"]:
        return False
    flags = ((_MODULE.fullmatch(argument), following) for argument, following in pairwise([*sys.orig_argv, ""]))
    module = next((found[1] or following for found, following in flags if found), "")
    return module.partition(".")[0] in _COMMANDS

"""Warm and cold malloc on a CPU.

By default glibc maps every large tensor again and gives it back when it is freed, so that page faults drown what is
measured; a process that has run for a while, or another allocator, does not pay them. Both states are chosen by
environment variables, before a process starts.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

WARM = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def restart_warm(arguments: Sequence[str], also: Mapping[str, str] | None = None) -> None:
    """Replace this process by `python -m bench` with warm malloc, and other settings, unless it has them."""
    wanted = os.environ | WARM | dict(also or {})
    if wanted != os.environ:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, "-m", "bench", *arguments], wanted)


def run_cold(arguments: Sequence[str]) -> tuple[int, str]:
    """Run `python -m bench.cold` in a process with cold malloc; return its exit code and what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in WARM}
    command = [sys.executable, "-m", "bench.cold", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout

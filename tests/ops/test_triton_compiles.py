"""The Triton kernels compile for every architecture that is shipped, and keep to their registers."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_no_kernel_spills():
    pytest.importorskip("triton")
    # In a process of its own: compiling fails where kernels were interpreted before.
    command = [sys.executable, "-m", "bench.triton_kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for kernel in ("loss_tiles", "slope_tiles", "add_partials", "loss_patches", "slope_patches", "write_patches"):
        assert f"`{kernel}[" in done.stdout

"""The CUDA kernels compile for every architecture that is shipped, and keep to their registers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90, 100)
KERNEL_FILES = sorted((ROOT / "csrc").rglob("*.cu"))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda path: path.name)
def test_no_kernel_spills(path, tmp_path):
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    command = ["nvcc", "-O3", "-std=c++17", f"-I{ROOT / 'csrc'}", *targets, "-Xptxas", "-v", "-c", path]
    done = subprocess.run([*command, "-o", tmp_path / "out.o"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", done.stderr)]
    assert len(spills) >= 2 * len(ARCHITECTURES), "ptxas reported nothing"
    assert not any(spills), done.stderr

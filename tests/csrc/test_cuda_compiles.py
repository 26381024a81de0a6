"""The CUDA kernels compile for every architecture that is shipped, and keep to their registers."""

import shutil

import pytest

from bench.kernels import ARCHITECTURES, CUDA_FILES, compile_kernels, table


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("path", CUDA_FILES, ids=lambda path: path.name)
def test_no_kernel_spills(path):
    kernels = compile_kernels(path)
    assert {kernel.arch for kernel in kernels} == set(ARCHITECTURES), "ptxas did not report every architecture"
    assert not any(kernel.spills for kernel in kernels), table(kernels)

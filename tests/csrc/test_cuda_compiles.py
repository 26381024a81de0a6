"""A kernel that spills registers is seen by the table, and ends a build as CI and `make build` run it.

So every kernel is held to its registers where it is compiled anyway, and none is compiled again to be looked at.
"""

import re
import shlex
import shutil

import commands
import pytest

from bench.compiled import cuda_kernels as kernels

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")

# Two blocks of 1024 threads leave a thread 32 registers; `spills` must hold 64 numbers.
SOURCE = """
__global__ void __launch_bounds__(1024, 2) fits(float* x) { x[threadIdx.x] *= 2; }

__global__ void __launch_bounds__(1024, 2) spills(const float* from, float* to, int stride) {
  float held[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) held[i] = from[threadIdx.x + i * stride];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) to[threadIdx.x + i * stride] = held[i] * held[63 - i] + held[i * 7 % 64];
}
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.cu"
    path.write_text(SOURCE)
    return path


def test_the_table_tells_what_spills(source, monkeypatch):
    monkeypatch.setattr(kernels, "ROOT", source.parent)
    found = kernels.compile_kernels(source)
    assert sorted(kernel.arch for kernel in found) == sorted(2 * kernels.ARCHITECTURES)
    assert all((kernel.spills > 0) == ("spills" in kernel.name) for kernel in found)
    assert all(0 < kernel.registers <= 32 for kernel in found)


@pytest.mark.parametrize("file", ["Makefile", ".ci/run"])
def test_a_spill_ends_a_build(source, file):
    (flags,) = re.findall(r"^export CUDAFLAGS ?= ?'?(-[^'\n]+)", (kernels.ROOT / file).read_text(), flags=re.MULTILINE)
    command = ["nvcc", "-arch=sm_90", *shlex.split(flags), "-c", str(source), "-o", str(source.with_suffix(".o"))]
    done = commands.run(command)
    assert done.returncode != 0
    assert "Registers are spilled to local memory in function '_Z6spills" in done.stderr
    assert "fits" not in done.stderr

"""The compiled library: found, loaded once, and asked what it was built with."""

import ctypes
import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

HOST_CUDA = "_native_host_cuda.so"  # made by `make host-cuda`


@dataclass(frozen=True, kw_only=True)
class NativeLibrary:
    path: Path
    cuda_archs: tuple[str, ...] = ()  # empty: built without CUDA
    simd: str | None = None  # instruction set of the CPU kernels; None: BIMKERN_CPU asks for what is not there
    error: str | None = None  # None: loaded

    @property
    def runs_cuda_on_host(self) -> bool:
        """Whether its CPU kernels are the CUDA kernels, run on the host for tests."""
        return self.path.name == HOST_CUDA

    def missing(self, device: str) -> str | None:
        """Say why the library cannot serve `device`; None if it can."""
        if self.error is not None:
            return self.error
        if device == "cuda" and not self.cuda_archs:
            return "the native library was built without CUDA (install it where there are a GPU and nvcc)"
        if device == "cuda" and _gpu_arch() < min(int(arch.rpartition("_")[2]) for arch in self.cuda_archs):
            return (
                f"the native library has kernels for {self.cuda_archs[0]} and newer, this GPU is sm_{_gpu_arch()} "
                "(install it again here)"
            )
        return None


@functools.cache
def _gpu_arch() -> float:
    """Return the GPU's architecture as a number, 90 for sm_90; without a GPU none is too old."""
    if not torch.cuda.is_available():
        return math.inf
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def load(path: Path) -> NativeLibrary:
    """Load the library at `path`; a library that is missing or broken is described, never raised."""
    if not path.exists():
        remedy = "make host-cuda" if path.name == HOST_CUDA else "install with a C++ compiler"
        return NativeLibrary(path=path, error=f"the native library was not built ({remedy})")
    try:
        torch.ops.load_library(str(path))
        functions = ctypes.CDLL(str(path))
        cuda_archs, simd = functions.bimkern_cuda_archs, functions.bimkern_simd
    except (OSError, AttributeError) as error:
        return NativeLibrary(path=path, error=f"the native library cannot be loaded: {error}")
    cuda_archs.restype = simd.restype = ctypes.c_char_p
    used = simd()
    return NativeLibrary(
        path=path, cuda_archs=tuple(cuda_archs().decode().split()), simd=None if used is None else used.decode()
    )


# One process can load one of the two: both define the same ops.
_name = HOST_CUDA if os.environ.get("BIMKERN_BACKEND") == "host-cuda" else "_native.so"
library = load(Path(__file__).resolve().parent.parent / _name)

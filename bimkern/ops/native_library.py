"""The compiled library: found, loaded once, and asked what it was built with."""

import ctypes
import functools
import os
import re
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
        if device == "cuda" and (gpu := _gpu_arch()) is not None and not serves(self.cuda_archs, gpu):
            return (
                f"the native library was built for {' '.join(self.cuda_archs)}, this GPU is sm_{gpu} "
                "(install it again here)"
            )
        return None


def serves(archs: tuple[str, ...], gpu: int) -> bool:
    """Return whether one of sm_80, compute_90, ... runs on a GPU, 90 for sm_90.

    A binary runs on newer GPUs of its major architecture, PTX on all newer ones. Source: CUDA C++ Programming Guide,
    "Application Compatibility".
    """
    for arch in archs:
        oldest = int(re.findall(r"\d+", arch)[0])  # sm_90a too
        if oldest <= gpu and (arch.startswith("compute_") or oldest // 10 == gpu // 10):
            return True
    return False


@functools.cache
def _gpu_arch() -> int | None:
    """Return the GPU's architecture, 90 for sm_90; None without a GPU, for which anything will do."""
    if not torch.cuda.is_available():
        return None
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

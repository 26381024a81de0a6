"""Where an arena is available; and the replacement of torch's CUDA allocator by the arena's, before its first use.

A pluggable allocator sees every tensor only if it replaces torch's own, for the whole process; behind a
torch.cuda.MemPool it is asked for whole segments. torch then has no memory statistics: `held_bytes` replaces them. The
GPU part has not run on one yet.
"""

import ctypes
from typing import Any

import torch

from bimkern.arena._native import native
from bimkern.arena.build import REMEDY
from bimkern.arena.errors import ArenaUnavailable

_ALLOCATE, _FREE, _RECORD_STREAM = (f"bimkern_arena_{name}" for name in ("alloc", "free", "record_stream"))

_installed: list[Any] = []  # torch's handle of our allocator, for as long as there are tensors


def unusable(device_type: str = "cpu", *, may_build: bool = True) -> str | None:
    """Say why there is no arena here for "cpu" or "cuda"; None if there is.

    This may build the module, which takes a minute; with may_build=False a module that is not built yet is a reason.
    """
    try:
        _find(device_type, may_build=may_build)
    except ArenaUnavailable as error:
        return str(error)
    return None


def install(device: torch.device) -> int:
    """Install the arena's allocator for all GPUs, once per process, and return the index of this one.

    Raises:
        ArenaUnavailable: there is none here, or torch's own has already been used.
    """
    module = _find("cuda")
    if not _installed:
        _installed.append(_replace(module, device.index or 0))
    return _index(device)


def held_bytes(device: torch.device) -> tuple[int, int] | None:
    """Return the bytes that tensors and plans hold on a GPU, now and at most; None if torch's own allocator counts."""
    return native().device_bytes(_index(device)) if _installed else None


def _find(device_type: str, *, may_build: bool = True) -> Any:
    module = native(may_build=may_build)
    if device_type == "cuda":
        if torch.version.cuda is None:
            raise ArenaUnavailable("torch was built without CUDA")
        if not module.with_cuda:
            raise ArenaUnavailable(f"the arena was built without CUDA; where there are a GPU and nvcc {REMEDY}")
        if not torch.cuda.is_available():
            raise ArenaUnavailable("torch sees no CUDA device")
    return module


def _replace(module: Any, index: int) -> Any:
    if torch.cuda.is_initialized():
        raise ArenaUnavailable(
            "torch's own allocator is in use already: make the first arena on a GPU before anything else touches one"
        )
    try:
        module.claim_device(index)  # it may fail, while torch's own allocator is still in place
    except RuntimeError as error:
        raise ArenaUnavailable(str(error).removeprefix("arena: ")) from error
    library = ctypes.CDLL(module.__file__)
    allocator = torch.cuda.memory.CUDAPluggableAllocator(module.__file__, _ALLOCATE, _FREE)
    try:
        # Without it an allocation would be reused while another stream still reads it.
        record_stream = ctypes.cast(library[_RECORD_STREAM], ctypes.c_void_p).value
        allocator.allocator().set_record_stream_fn(record_stream)
        torch.cuda.memory.change_current_allocator(allocator)
    except (AttributeError, RuntimeError) as error:
        raise ArenaUnavailable(f"torch {torch.__version__} takes no other allocator: {error}") from error
    return allocator


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index

"""Live bytes: those of activations, counted tensor by tensor, and those held by the process or the device."""

import resource
from pathlib import Path

import torch

from bimkern import arena


class LiveBytes:
    """Count the live bytes of activations and their gradients, and of temporary buffers of our own kernels.

    It observes an AllocationTracker. Gradients of parameters stop counting once they are accumulated.
    """

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def allocated(self, key: int, size: int) -> None:
        self._sizes[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)

    def freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def accumulated(self, key: int, size: int) -> None:
        self.freed(key)


def held_bytes(device: torch.device) -> tuple[int, int]:
    """Return the bytes held now and at the peak so far: by torch on a GPU, by the whole process on a CPU."""
    if device.type == "cuda":
        own = arena.held_bytes(device)  # torch does not count memory of another allocator
        return own or (torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""What graphs need of a device: a stream to be captured on, capture, and replay. The GPU part has not run on one yet.

What it assumes of torch and CUDA:
- Work on the default stream cannot be captured, so whole steps run on a stream of their own, which owns the arena.
- A backward pass runs on another thread and on the stream of its forward pass, so that it is captured too.
- While a stream is captured torch asks the arena's allocator for memory as ever, and tells it nothing of the capture.
  Where a plan serves, nothing of that calls the driver. Where none does, the driver's pool captures allocations and
  frees, which is of no harm in a graph that is never replayed, nor instantiated (keep_graph).
- What torch itself needs for random numbers in graphs it allocates before a capture begins, or never where none are
  drawn. Some kernels, such as those of attention, allocate otherwise in a capture.
- Other threads may call the driver meanwhile (thread_local), but no thread frees memory of this stream that is older
  than the capture: the driver would capture it. A graph has the scopes of an arena without debug mode.
"""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import torch


class Graph(Protocol):
    """Work that is captured once, and then replayed on the same addresses."""

    def capture(self) -> AbstractContextManager[object]:
        """Note what is given to the device in this context, instead of doing it."""

    def replay(self) -> None:
        """Do what was captured."""


class GraphDevice(Protocol):
    def stream(self) -> AbstractContextManager[object]:
        """Make the stream that steps run on the current one, behind and before all else."""

    def graph(self) -> Graph:
        """Return a graph that is still empty."""


class CudaGraph:
    """A torch.cuda.CUDAGraph, which allocates nothing of its own."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph(keep_graph=True)  # instantiated when it is first replayed

    @contextmanager
    def capture(self) -> Iterator[None]:
        with _without_garbage():
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                yield
            except BaseException:
                with suppress(RuntimeError):  # that the capture has failed, which the first error says better
                    self._graph.capture_end()
                raise
            self._graph.capture_end()

    def replay(self) -> None:
        self._graph.replay()


class CudaGraphs:
    """Graphs of one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def stream(self) -> Iterator[None]:
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outside.wait_stream(self._stream)

    def graph(self) -> Graph:
        return CudaGraph()


@contextmanager
def _without_garbage() -> Iterator[None]:
    """Collect garbage before and not within: memory that is older than a capture cannot be freed in it."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()

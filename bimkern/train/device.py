"""The device of a run: the CPU, or one GPU that all of its threads keep to."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bimkern.mim.flow import Beside, Targets, when_needed
from bimkern.train.config.run import ConfigError, RunConfig, resolve_device


def claim(name: str) -> torch.device:
    """Return the device that --device names, with its index, and make it the current one of this thread.

    What names no device, as pinned memory and events, else opens a context on the first GPU and waits for its streams.

    Raises:
        ConfigError: there is no such device here.
    """
    device = resolve_device(name)
    if device.type != "cuda":
        return device
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def current(device: torch.device | None) -> AbstractContextManager[object]:
    """Make a GPU the current one: every new thread begins at the first. Of anything else there is only one."""
    return torch.cuda.device(device) if device is not None and device.type == "cuda" else nullcontext()


def recorded(device: torch.device) -> torch.cuda.Event:
    """Return an event behind all that a GPU has been given so far."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


class StepEdge:
    """How far the device is behind the host, which runs ahead of it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: torch.cuda.Event | None = None

    def mark(self) -> None:
        """Note that a step has been given to the device."""
        if self._device.type == "cuda":
            self._last = recorded(self._device)

    def pending(self) -> bool:
        """Return whether the device is still at work on the last step."""
        return self._last is not None and not self._last.query()


class TargetStream:
    """A stream of a GPU that computes targets beside what the current one does until they are needed.

    Each waits for the other where it takes over tensors, which return to the allocator when both are done with them.
    It has not run on a GPU yet.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def __call__(self, compute: Callable[[], Targets], images: Tensor) -> Callable[[], Targets]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        images.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            found = [compute()]

        def taken_over() -> Targets:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            targets = found.pop()  # nothing here keeps them
            for target in targets.values():
                for tensor in (target.vectors, target.features):
                    if tensor is not None:
                        tensor.record_stream(current)
            return targets

        return taken_over


def check_target_stream(run: RunConfig, device: torch.device) -> None:
    """Make sure that a run can have the stream that --target-stream asks for.

    Raises:
        ConfigError: it cannot; the message is the reason.
    """
    if run.target_stream and device.type != "cuda":
        raise ConfigError(f"--target-stream needs a GPU, got {device.type}; leave it out")
    if run.target_stream and run.cuda_graphs:
        raise ConfigError("--target-stream with --cuda-graphs: a graph is captured from one stream; use one of them")
    if run.target_stream and run.arena == "plan":
        raise ConfigError("--target-stream with --arena plan: the plan is for one stream; use --arena pool or off")


def target_stream(run: RunConfig, device: torch.device) -> Beside:
    """Return where a run computes targets.

    Raises:
        ConfigError: it cannot be had; the message is the reason.
    """
    check_target_stream(run, device)
    return TargetStream(device) if run.target_stream else when_needed


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """Let torch take only kernels whose results repeat, and fail where there is none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # only tests need memory to start as NaN
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]

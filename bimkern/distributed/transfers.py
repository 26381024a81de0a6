"""Transfers between ranks: sums and copies that are on their way, the time that they take, and ranks that are lost."""

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from bimkern.errors import RunError

BUCKET_BYTES = 25 * 2**20  # of gradients that are summed at a time, as DistributedDataParallel has it


class RankLost(RunError, RuntimeError):
    """Another rank has ended, or has not answered in time."""


@contextmanager
def lost() -> Iterator[None]:
    """Turn torch's error of a rank that is gone into RankLost."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[\S+\] ", "", str(error)).partition(". ")[0]  # without a line of gloo's, and its advice
        raise RankLost(f"lost another rank ({reason})") from error


@dataclass(frozen=True)
class Traffic:
    """When transfers were on their way, and how long this rank waited for them."""

    spans: tuple[tuple[float, float], ...] = ()  # the beginning and the end of each, in seconds of one clock
    wait: float = 0.0  # seconds of these in which nothing else happened

    @property
    def total(self) -> float:
        """The seconds in which at least one was on its way."""
        total, until = 0.0, -math.inf
        for begun, ended in sorted(self.spans):
            total += max(0.0, ended - max(begun, until))
            until = max(until, ended)
        return total

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.spans + other.spans, self.wait + other.wait)


class Transfer(Protocol):
    """A collective operation, or a message, that is on its way; a handle, as torch's Work is."""

    def wait(self) -> object:
        """Wait for it, or have the current stream of the GPU wait."""

    def traffic(self) -> Traffic:
        """Return the time that it took, once it was waited for and what the GPU was given by then is done."""


class NotSent:
    """The transfers of one process, which sends nothing."""

    def wait(self) -> None:
        pass

    def traffic(self) -> Traffic:
        return Traffic()


def begun(tensor: Tensor, begin: Callable[[], Any]) -> Transfer:
    """Begin a collective operation on a tensor, which torch does in the background."""
    with lost():
        return _OnDevice(tensor.device, begin) if tensor.is_cuda else _OnHost(begin)


def message(tensor: Tensor, begin: Callable[[], Any], timeout: timedelta | None) -> Transfer:
    """Begin a message, likewise; on the host, wait() gives up after the timeout, by default that of the connection."""
    with lost():
        return _OnDevice(tensor.device, begin) if tensor.is_cuda else _Message(begin, timeout)


def finished(tensor: Tensor, begin: Callable[[], Any]) -> Transfer:
    """Begin a transfer of a tensor, and wait for it, or have the current stream of the GPU wait."""
    if tensor.is_cuda:
        sent = begun(tensor, begin)
        sent.wait()
        return sent
    start = time.perf_counter()
    with lost():
        begin().wait()
    end = time.perf_counter()
    return _Finished(Traffic(((start, end),), end - start))


@dataclass(frozen=True)
class _Finished:
    """A transfer on the host that was waited for from its beginning on."""

    spent: Traffic

    def wait(self) -> None:
        pass

    def traffic(self) -> Traffic:
        return self.spent


class _OnHost:
    """An operation on the host."""

    def __init__(self, begin: Callable[[], Any]) -> None:
        self._begun = time.perf_counter()
        self._ended: list[float] = []
        self._work = begin()
        self._work.get_future().add_done_callback(lambda _: self._ended.append(time.perf_counter()))

    def wait(self) -> None:
        self._awaited = time.perf_counter()
        with lost():
            self._work.wait()
        self._there = time.perf_counter()
        del self._work

    def traffic(self) -> Traffic:
        (ended,) = self._ended or [self._there]  # the callback may still be due
        return Traffic(((self._begun, ended),), max(0.0, min(ended, self._there) - self._awaited))


class _Message:
    """A message on the host, which ends when it was waited for: gloo does not say when it arrives."""

    def __init__(self, begin: Callable[[], Any], timeout: timedelta | None) -> None:
        self._begun, self._timeout = time.perf_counter(), () if timeout is None else (timeout,)
        self._work = begin()

    def wait(self) -> None:
        awaited = time.perf_counter()
        with lost():
            self._work.wait(*self._timeout)
        there = time.perf_counter()
        self._spent = Traffic(((self._begun, there),), there - awaited)
        del self._work

    def traffic(self) -> Traffic:
        return self._spent


class _OnDevice:
    """An operation on a GPU. It has not yet run on one."""

    def __init__(self, device: torch.device, begin: Callable[[], Any]) -> None:
        self._clock, stream = _clock(device)
        self._begun, self._ended, self._awaited, self._there = (torch.cuda.Event(enable_timing=True) for _ in range(4))
        self._begun.record()
        self._work = begin()
        with torch.cuda.stream(stream):
            self._work.wait()
            self._ended.record()

    def wait(self) -> None:
        self._awaited.record()
        with lost():
            self._work.wait()
        self._there.record()
        del self._work

    def traffic(self) -> Traffic:
        begun, ended = (self._clock.elapsed_time(event) / 1000 for event in (self._begun, self._ended))
        return Traffic(((begun, ended),), self._awaited.elapsed_time(self._there) / 1000)


@cache
def _clock(device: torch.device) -> tuple[torch.cuda.Event, torch.cuda.Stream]:
    """Return an event that times count from, and the stream that waits for the end of transfers."""
    stream, start = torch.cuda.Stream(device), torch.cuda.Event(enable_timing=True)
    start.record(stream)
    return start, stream

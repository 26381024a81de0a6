"""Throughput counts what it should, and a slow loader is timed while nothing else runs."""

import time

import pytest
import torch

from bimkern.data.batches import BadImages, Batch
from bimkern.train.device import StepEdge
from bimkern.train.reporting.bottleneck import BottleneckWarning, Prefetcher
from bimkern.train.reporting.throughput import Throughput, TimedLoader

SLOW, FAST = 0.2, 0.01  # seconds until the first micro-batch of a start, and until any other


class Loader:
    """Yield micro-batches of four small images, and fail before one of them."""

    def __init__(self, fails_at=None):
        self._fails_at = fails_at

    def batches(self, data, first, last):
        for index in range(first, last):
            time.sleep(SLOW if index == first else FAST)
            if index == self._fails_at:
                self._fails_at = None
                raise BadImages({})
            yield Batch(torch.full((4, 3, 2, 2), index, dtype=torch.uint8), *2 * [torch.arange(4)])


def idle():
    return False


def prefetcher(loader, count=40):
    return Prefetcher(([batch] for batch in loader.batches(None, 0, count)), loader)


def indices(batches):
    return [int(batch.images[0, 0, 0, 0]) for batch in batches]


def test_the_start_of_a_loader_counts_neither_as_waiting_nor_as_time():
    loader = TimedLoader(Loader(fails_at=3), idle)
    throughput, seen, index = Throughput(loader, 10), [], 0
    while index < 6:  # as ResilientLoader starts a loader again
        try:
            for batch in loader.batches(None, index, 6):
                seen.append(batch)
                index += 1
        except BadImages:
            pass
    interval = throughput.interval(16)
    assert indices(seen) == list(range(6))
    assert interval.steps == 6
    assert loader.startup >= 2 * SLOW
    assert 4 * FAST <= interval.waited <= interval.seconds  # two of six are first ones
    assert interval.seconds - interval.waited < SLOW  # nothing but waiting went on
    assert throughput.interval(16).waited == 0


def test_what_is_done_between_two_intervals_belongs_to_neither():
    throughput = Throughput(TimedLoader(Loader(), idle), 0)
    throughput.interval(4)
    time.sleep(SLOW)
    throughput.skip(4)
    following = throughput.interval(6)
    assert following.steps == 2
    assert following.seconds < SLOW


def test_a_wait_during_which_the_device_works_counts_as_none():
    busy = iter([True, False, True])
    loader = TimedLoader(Loader(), lambda: next(busy))
    throughput = Throughput(loader, 0)
    assert len(list(zip(range(4), loader.batches(None, 0, 9), strict=False))) == 4
    interval = throughput.interval(4)
    assert FAST <= interval.waited <= interval.seconds - 2 * FAST


def test_a_step_that_the_device_has_not_finished_is_pending(device):
    edge = StepEdge(device)
    assert not edge.pending()
    edge.mark()
    if device.type == "cuda":
        torch.cuda.synchronize()
    assert not edge.pending()


def test_the_rate_of_the_loader_alone_is_measured_and_no_step_is_lost():
    loader = TimedLoader(Loader(), idle)
    steps = prefetcher(loader)
    (first,) = steps.next()
    rate = steps.loader_rate()
    assert 4 / SLOW < rate <= 4 / FAST
    assert indices([first, *(steps.next()[0] for _ in range(39))]) == list(range(40))
    with pytest.raises(StopIteration):
        steps.next()


def test_an_error_while_prefetching_is_raised_in_its_turn():
    loader = TimedLoader(Loader(fails_at=4), idle)
    steps = prefetcher(loader)
    steps.next()
    assert steps.loader_rate() is not None
    assert indices(steps.next()[0] for _ in range(3)) == [1, 2, 3]
    for _ in range(2):
        with pytest.raises(BadImages):
            steps.next()


def test_few_bytes_are_prefetched(monkeypatch):
    monkeypatch.setattr("bimkern.train.reporting.bottleneck._MAX_BYTES", 3 * 48)
    loader = TimedLoader(Loader(), idle)
    steps = prefetcher(loader)
    assert steps.loader_rate() is not None
    assert len(steps._ready) == 3


def test_a_slow_loader_is_reported_once_and_after_two_intervals_in_a_row(caplog):
    loader = TimedLoader(Loader(), idle)
    warning, steps = BottleneckWarning(), prefetcher(loader)
    steps.next()
    for step, share in enumerate((0.06, 0.05, 0.06)):
        warning.note(step, share, 100.0, steps)
    assert not caplog.text
    for step in (3, 4, 5):
        warning.note(step, 0.5, 100.0, steps)
    (said,) = caplog.messages
    assert said.startswith("step 3: 50 % of the time is spent waiting for images. The loader alone reaches ")
    rate = float(said.split("reaches ")[1].split(" images/s, the run needs 100;")[0])
    assert round(4 / SLOW) < rate <= 4 / FAST


@pytest.mark.parametrize(
    ("images_per_s", "threads", "why"),
    [
        (1.0, 2, "training leaves it too few cores: a lower OMP_NUM_THREADS (now 2) frees some"),
        (1.0, 1, "training leaves it too few cores: training already runs on one thread"),
        (1e6, 2, "its limit here"),
    ],
)
def test_the_warning_names_the_loader_or_the_cores(caplog, monkeypatch, images_per_s, threads, why):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    loader = TimedLoader(Loader(), idle)
    warning, steps = BottleneckWarning(), prefetcher(loader)
    steps.next()
    for step in range(2):
        warning.note(step, 0.5, images_per_s, steps)
    assert why in caplog.text


def test_nothing_is_said_at_the_end_of_the_data(caplog):
    loader = TimedLoader(Loader(), idle)
    warning, steps = BottleneckWarning(), prefetcher(loader, 2)
    steps.next()
    for step in range(3):
        warning.note(step, 0.5, 100.0, steps)
    assert not caplog.text
    assert indices(steps.next()) == [1]

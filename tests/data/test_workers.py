"""Worker processes: whatever becomes of one of them, the wait for it ends or is said."""

import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from mmap import mmap

import commands
import pytest
import torch
from bad_files import picture
from checked import checked_images
from disk import full_disk

from bimkern import watchdog
from bimkern.data import pil, workers
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.formats import OutOfResources
from bimkern.data.pil import PilLoader
from bimkern.data.step_layout import StepLayout
from bimkern.data.workers import WorkerDied, ahead
from bimkern.watchdog import Interrupted, stopped_by


@pytest.fixture(autouse=True)
def no_worker_is_left():
    before = set(multiprocessing.active_children())  # that another test left to the garbage collector
    yield
    assert set(multiprocessing.active_children()) <= before


@pytest.fixture
def data(tmp_path):
    """Micro-batches of 1.2 MB."""
    for i in range(6):
        picture(40 + i, 30, seed=i).save(tmp_path / f"{i}.png")
    layout = StepLayout.uniform(image_size=224, batch_size=16, micro_batch=8)
    return MicroBatches(images=checked_images(tmp_path), augment=RandomResizedCrop(), seed=3, layout=layout)


def children():
    """Return the workers that this test has started."""
    return [process.pid for process in multiprocessing.active_children() if process.name == "bimkern worker"]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def eventually(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def same(ours, theirs):
    return all(torch.equal(a.images, b.images) for a, b in zip(ours, theirs, strict=True))


def test_items_come_in_order_and_each_once():
    count = 20_000  # more than the pipe of jobs has room for
    assert list(ahead(lambda i: -i, range(count), workers=2, prefetch=count)) == [-i for i in range(count)]
    anyhow = ahead(lambda i: -i, range(500), workers=3, prefetch=2, in_order=False)
    assert sorted(anyhow) == [-i for i in reversed(range(500))]


def test_jobs_are_taken_as_items_are_used():
    taken = []
    jobs = (taken.append(i) or i for i in range(9))
    items = ahead(abs, jobs, workers=2, prefetch=2)
    assert not taken
    for i in range(9):
        assert next(items) == i
        assert len(taken) == min(i + 5, 9)
    items.close()


def test_an_item_may_be_larger_than_a_pipe():
    items = ahead(lambda i: bytes([i]) * 300_000, range(8), workers=2, prefetch=3)
    assert list(items) == [bytes([i]) * 300_000 for i in range(8)]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_the_one_that_was_raised_and_says_where(workers):
    def work(i):
        raise OutOfResources(f"no room for {i}")

    with pytest.raises(OutOfResources) as raised:
        list(ahead(work, range(3), workers=workers, prefetch=1))
    assert str(raised.value) == "no room for 0"
    assert "in work\n" in "".join(traceback.format_exception(raised.value))


def test_what_cannot_be_sent_is_an_error_and_no_silence():
    """A thread that writes for a worker would die of it, and leave the worker alive and mute."""
    with pytest.raises(TypeError, match="cannot pickle"):
        list(ahead(lambda i: threading.Lock(), range(3), workers=1, prefetch=1))

    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def work(i):
        raise Odd("this", "that")

    with pytest.raises(RuntimeError, match="Odd: this and that"):
        list(ahead(work, range(3), workers=1, prefetch=1))


@pytest.mark.parametrize(
    ("die", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL; fewer workers need less memory"),
        (lambda: os.kill(os.getpid(), signal.SIGRTMIN + 1), "was ended by signal 35; fewer"),
        (lambda: os._exit(3), "ended with exit code 3"),
    ],
    ids=["killed", "killed by a signal without a name", "exited"],
)
def test_a_dead_worker_is_noticed_at_once(die, words):
    begin, seen = time.monotonic(), []
    with pytest.raises(WorkerDied, match=words):
        seen.extend(ahead(lambda i: die() if i == 4 else i, range(9), workers=2, prefetch=2))
    assert seen == list(range(len(seen)))
    assert len(seen) <= 4
    assert time.monotonic() - begin < 5


def test_a_stopped_worker_is_reported_and_its_items_come_when_it_continues(monkeypatch, caplog):
    monkeypatch.setattr(watchdog, "STALLED", 0.1)
    monkeypatch.setattr(watchdog, "_POLL", 0.05)
    items = ahead(abs, range(200), workers=1, prefetch=2, what="the test")
    assert next(items) == 0
    (pid,) = children()
    os.kill(pid, signal.SIGSTOP)

    monkeypatch.setattr(watchdog.logger, "filter", lambda record: os.kill(pid, signal.SIGCONT) is None)
    assert list(items) == list(range(1, 200))
    assert "the test has made no progress for 0 s; still waiting" in caplog.text


@pytest.mark.parametrize("killable", [True, False])
def test_a_stop_ends_the_wait_for_a_hung_worker(monkeypatch, killable):
    monkeypatch.setattr(workers, "_REAPED", 0.2)
    items = ahead(abs, range(200), workers=2, prefetch=2)
    assert next(items) == 0
    pids = children()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    if not killable:  # as a process is that waits for a dead disk
        monkeypatch.setattr(workers.ForkProcess, "kill", lambda self: None)
    begin = time.monotonic()
    with stopped_by(lambda: True), pytest.raises(Interrupted):
        list(items)
    assert time.monotonic() - begin < 5
    monkeypatch.undo()
    for process in (p for p in multiprocessing.active_children() if p.pid in pids):
        process.kill()
        process.join(10)
    assert not any(map(is_alive, pids))


def test_garbage_of_the_program_is_not_collected_in_a_worker():
    """A pipeline of DALI, for one, waits then for its threads, which are not in the process."""

    class Hanging:
        def __init__(self, home):
            self.itself, self.home = self, home

        def __del__(self):
            while os.getpid() != self.home:
                time.sleep(1)

    gc.disable()
    try:
        Hanging(os.getpid())
        items = ahead(lambda i: min(i, gc.collect() + i), range(2), workers=1, prefetch=1)
        began = time.monotonic()
        with stopped_by(lambda: time.monotonic() > began + 20):
            assert list(items) == [0, 1]
    finally:
        gc.enable()


def test_signals_to_the_whole_group_are_left_to_the_run():
    items = ahead(abs, range(200), workers=2, prefetch=2)
    assert next(items) == 0
    for pid in children():
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert list(items) == list(range(1, 200))


def test_workers_end_with_a_killed_parent():
    program = (
        "from bimkern.data.workers import ahead; import multiprocessing, time\n"
        "items = ahead(abs, range(1000), workers=3, prefetch=2); next(items)\n"
        "print(*(process.pid for process in multiprocessing.active_children()), flush=True); time.sleep(100)"
    )
    with commands.Command([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(is_alive, pids))
        parent.kill()
        eventually(lambda: not any(map(is_alive, pids)))


def test_a_program_that_exits_ends_its_workers():
    program = (
        "from bimkern.data.workers import ahead\n"
        "import os, signal, multiprocessing\n"
        "items = ahead(abs, range(1000), workers=2, prefetch=2); next(items)\n"
        "[os.kill(process.pid, signal.SIGSTOP) for process in multiprocessing.active_children()]"
    )
    commands.run([sys.executable, "-c", program], check=True, timeout=60)


def test_processes_that_cannot_be_started_are_a_death(monkeypatch):
    def no_process(self):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(workers.ForkProcess, "start", no_process)
    handles = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WorkerDied, match=r"no worker process can be started \(.*temporarily unavailable\); fewer"):
        list(ahead(abs, range(9), workers=2, prefetch=2))
    assert len(os.listdir("/proc/self/fd")) == handles


def test_no_shared_memory_with_a_name_is_needed(data):
    """Files of shared memory count as files: here none of them may grow to the size of a batch."""
    expected = list(PilLoader(workers=0).batches(data, 0, 9))
    loaded = PilLoader(workers=2).batches(data, 0, 9)
    with full_disk():
        batches = [next(loaded)]
        assert len(children()) == 2
    assert same([*batches, *loaded], expected)


def test_batches_that_are_kept_stay_as_they_are(data):
    kept = list(PilLoader(workers=2).batches(data, 0, 40))  # more than there is shared memory for
    assert same(kept, PilLoader(workers=0).batches(data, 0, 40))


def test_without_memory_for_it_less_is_prepared_ahead(data, caplog):
    expected = list(PilLoader(workers=0).batches(data, 0, 6))
    assert same(with_little_memory(11 * 1_204_224, PilLoader(workers=2), data), expected)
    (line,) = caplog.messages
    assert line == "no memory for 4 batches a worker ([Errno 12] Cannot allocate memory); each prepares 2 ahead"
    with pytest.raises(OutOfResources, match=r"no memory for a batch of 1204224 bytes in each of 2 workers \(.*fewer"):
        with_little_memory(2 * 1_204_224, PilLoader(workers=2), data)


def with_little_memory(num_bytes, loader, data):
    """Load where no more than so many bytes can be mapped at once."""

    def limited(descriptor, size):
        if size > num_bytes:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return mmap(descriptor, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pil, "mmap", limited)
        return list(loader.batches(data, 0, 6))

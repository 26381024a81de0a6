"""Waits: a stall is said once and waited through, a requested stop ends it."""

import sys
import threading
import time

import commands
import pytest

from bimkern import watchdog
from bimkern.watchdog import BackgroundTask, Interrupted, Watchdog, stopped_by, watched


class Clock:
    """Time that passes only while something is awaited."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: self.now)

    def ready_in(self, seconds, while_waiting=lambda: None):
        end = self.now + seconds

        def ready(limit):
            while_waiting()
            self.now = min(self.now + limit, end)
            return self.now == end

        return ready


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_a_slow_source_is_reported_once_and_waited_for(clock, caplog):
    dog = Watchdog("the source")
    dog.wait(clock.ready_in(9.9))
    assert not caplog.messages
    for _ in range(3):
        dog.wait(clock.ready_in(1000))
    assert caplog.messages == ["the source has made no progress for 10 s; still waiting"]
    dog.wait(clock.ready_in(1))
    dog.wait(clock.ready_in(10.1))
    assert len(caplog.messages) == 2


def test_progress_is_no_stall(clock, caplog):
    dog = Watchdog("the save")
    dog.wait(clock.ready_in(1000, while_waiting=dog.progress))
    assert not caplog.messages


def test_a_requested_stop_ends_a_wait_within_a_second(clock):
    start = clock.now
    with stopped_by(lambda: clock.now > start + 5), pytest.raises(Interrupted, match="the source has made no progress"):
        Watchdog("the source").wait(clock.ready_in(1000))
    assert clock.now - start < 6
    Watchdog("the source").wait(clock.ready_in(1))  # outside of the context


def test_a_stop_with_grace_leaves_every_wait_time(clock):
    start = clock.now
    with stopped_by(lambda: clock.now > start + 5, grace=10.0), pytest.raises(Interrupted):
        Watchdog("the source").wait(clock.ready_in(1000))
    assert 15 <= clock.now - start < 17
    dog = Watchdog("the source")
    with stopped_by(lambda: True, grace=10.0):
        for _ in range(3):  # slow, and not hung
            dog.wait(clock.ready_in(7))


def test_a_patient_wait_ends_when_progress_does(clock):
    dog, start = Watchdog("the save", patient=True), clock.now

    def progress_for_a_minute():
        if clock.now < start + 60:
            dog.progress()

    with stopped_by(lambda: True):
        dog.wait(clock.ready_in(9))
        with pytest.raises(Interrupted, match="the save has made no progress for 10 s"):
            dog.wait(clock.ready_in(1000, while_waiting=progress_for_a_minute))
    assert start + 69 < clock.now < start + 72


def test_a_task_keeps_its_result_or_error():
    dog = Watchdog("the task")
    assert BackgroundTask(lambda: 7, name="seven").result(dog) == 7
    with pytest.raises(ZeroDivisionError):
        BackgroundTask(lambda: 1 // 0, name="error").result(dog)


def test_items_of_a_thread_are_those_of_the_iterator():
    assert list(watched(iter([1, None, 3]), Watchdog("items"))) == [1, None, 3]
    items = watched(map(int, ["1", "x"]), Watchdog("items"))
    assert next(items) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        next(items)


def test_an_iterator_that_hangs_does_not_hold_up_a_stop():
    gate = threading.Event()
    items = watched((gate.wait(120) for _ in range(3)), Watchdog("items"))
    with stopped_by(lambda: True), pytest.raises(Interrupted):
        next(items)
    gate.set()


def test_an_iterator_whose_end_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr(watchdog, "_CLOSING", 0.1)
    gate = threading.Event()

    def items():
        try:
            yield 1
        finally:
            gate.wait(120)

    loaded = watched(items(), Watchdog("items"))
    assert next(loaded) == 1
    begin = time.monotonic()
    loaded.close()
    assert time.monotonic() - begin < 5
    gate.set()


@pytest.mark.parametrize(
    "hang",
    ["BackgroundTask(lambda: time.sleep(1000), name='hangs')", "ThreadPoolExecutor(1).submit(time.sleep, 1000)"],
    ids=["task", "pool"],  # Python waits for a pool's threads at exit
)
def test_a_program_ends_though_a_thread_hangs(hang):
    program = (
        "import sys, time; from concurrent.futures import ThreadPoolExecutor\n"
        "from bimkern.watchdog import BackgroundTask, ending_at_once\n"
        "with ending_at_once():\n"
        f"    {hang}\n"
        "    print('this is the end'); sys.exit(143)"
    )
    done = commands.run([sys.executable, "-c", program], timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "this is the end\n", "")


@pytest.mark.parametrize(
    ("end", "exit_code", "said"),
    [
        ("pass", 0, []),
        ("sys.exit()", 0, []),
        ("sys.exit(143)", 143, []),
        ("sys.exit('a reason')", 1, ["a reason"]),
        ("raise KeyError('a mistake')", 1, ["KeyError: 'a mistake'"]),
    ],
    ids=["plainly", "exit", "code", "reason", "error"],
)
def test_a_program_with_threads_of_other_languages_ends_at_once_however_it_ends(end, exit_code, said):
    program = (
        "import atexit, sys\n"
        "from bimkern.watchdog import ending_at_once\n"
        "atexit.register(print, 'the last words')\n"
        "with ending_at_once(native=True):\n"
        f"    {end}\n"
        "print('not reached')"
    )
    done = commands.run([sys.executable, "-c", program], timeout=60)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1:]) == (exit_code, "the last words\n", said)

"""The first SIGTERM ends a run, whatever it is waiting for."""

import io
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time

import pytest
from bad_files import picture
from caches import empty_cache
from torch._subclasses.fake_tensor import FakeTensor

from bimkern import watchdog
from bimkern.data import check as checks
from bimkern.data import pil
from bimkern.mim.model import MIM
from bimkern.pretrain import main
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.pretraining import Pretraining
from bimkern.train.reporting.held_out import HeldOutEvaluation
from bimkern.train.signals import StopSignals, Terminated


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(40):
        picture(50, 40, seed=i).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def sigterm(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def answer(monkeypatch):
    """Return a function that answers a report of a stall with SIGTERM; SIGUSR1 says that one has begun."""
    handler = logging.Handler()

    def install(report, after=60):
        def emit(record):
            if report in record.getMessage():
                monkeypatch.setattr(watchdog, "STALLED", 60)  # whatever comes now may be slow
                sigterm()

        monkeypatch.setattr(watchdog, "STALLED", after)
        monkeypatch.setattr(watchdog, "_POLL", 0.05)
        handler.emit = emit

    watchdog.logger.addHandler(handler)
    before = signal.signal(signal.SIGUSR1, lambda *_: monkeypatch.setattr(watchdog, "STALLED", 0.3))
    yield install
    signal.signal(signal.SIGUSR1, before)
    watchdog.logger.removeHandler(handler)


@pytest.fixture
def gate():
    """What is not written before it opens; a test that fails must not leave it closed."""
    event = threading.Event()
    yield event
    event.set()


def ended(photos, out, capsys, *options):
    """Run until SIGTERM; return what is said on stderr, in one line."""
    begin = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        main(["bim_vit_test", "--data", str(photos), "--out", str(out), "--log-every", "1", *options])
    assert time.monotonic() - begin < 60
    assert stop.value.code == 143
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def stall(gate):
    os.kill(os.getpid(), signal.SIGUSR1)
    return gate.wait(120)


def steps_logged(out):
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def hang(count, work, workers=2):
    """Let worker processes hang, after so many pieces of work; the last of them says so."""
    done, going = iter(range(10**6)), multiprocessing.Value("i", workers)

    def hanging(*arguments):
        if multiprocessing.parent_process() is not None and next(done) == count:
            with going:
                going.value -= 1
                if not going.value:
                    os.kill(os.getppid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGSTOP)
        return work(*arguments)

    return hanging


def saved_step(out):
    saved = checkpoints.load_latest(out / "checkpoints")
    return saved.step if saved else 0


@pytest.mark.parametrize("pieces", [0, 4])
def test_a_loader_that_hangs(photos, out, capsys, caplog, monkeypatch, answer, pieces):
    answer("the loader has made no progress")
    monkeypatch.setattr(pil, "decode_into", hang(pieces, pil.decode_into))
    error = ended(photos, out, capsys, "--steps", "99", "--workers", "2")
    assert caplog.text.count("the loader has made no progress for 0 s; still waiting") == 1
    steps = steps_logged(out)
    assert bool(steps) == bool(pieces)
    assert f"stopped by SIGTERM after step {len(steps)}; the same command resumes the run" in error
    assert saved_step(out) == len(steps)


def test_images_that_hang_without_workers(photos, out, capsys, monkeypatch, answer, gate):
    answer("the loader has made no progress")
    plain, calls = pil.decode_into, iter(range(10**6))
    monkeypatch.setattr(pil, "decode_into", lambda *args: (next(calls) == 4 and stall(gate)) or plain(*args))
    error = ended(photos, out, capsys, "--steps", "99", "--workers", "0")
    assert "stopped by SIGTERM after step 3; " in error  # the first batch is for judging
    assert saved_step(out) == 3


def test_a_check_that_hangs(photos, out, capsys, monkeypatch, answer):
    answer("the image check has made no progress")
    monkeypatch.setenv("XDG_CACHE_HOME", empty_cache(out.parent / "cache"))
    monkeypatch.setattr(checks, "check_file", hang(0, checks.check_file))
    error = ended(photos, out, capsys, "--steps", "2", "--workers", "2")
    assert "stopped by SIGTERM; the same command resumes the run" in error


def test_the_first_step(photos, out, capsys, monkeypatch):
    plain = MIM.loss

    def loss(self, *arguments):
        result = plain(self, *arguments)
        if not isinstance(result, FakeTensor):  # which counts memory, before the run
            sigterm()
        return result

    monkeypatch.setattr(MIM, "loss", loss)
    assert "stopped by SIGTERM after step 1; " in ended(photos, out, capsys, "--steps", "99", "--workers", "0")
    assert saved_step(out) == 1


def test_a_step_without_memory(photos, out, capsys, monkeypatch):
    """The run would else continue with smaller micro-batches."""
    plain = Pretraining.step

    def step(self, index, batch, memory):
        if index == 2:
            sigterm()
            raise MemoryError
        return plain(self, index, batch, memory)

    monkeypatch.setattr(Pretraining, "step", step)
    error = ended(photos, out, capsys, "--steps", "9", "--save-every", "1", "--workers", "0")
    assert "stopped by SIGTERM; step 3: not enough memory for" in error
    assert "at a time; nothing saved since step 2; the same command resumes the run" in error


@pytest.mark.parametrize(
    "module", ["bimkern.train.checkpoint.store.load_latest", "bimkern.train.pretraining.write_backbones"]
)
def test_before_the_first_step_and_after_the_last(photos, out, capsys, monkeypatch, module):
    monkeypatch.setattr(module, sigterm)
    error = ended(photos, out, capsys, "--steps", "2", "--workers", "0")
    assert "stopped by SIGTERM; the same command resumes the run" in error


def test_at_the_last_step(photos, out, capsys, monkeypatch):
    """What comes after it, the exports, may hang."""
    plain = Pretraining.step
    monkeypatch.setattr(Pretraining, "step", lambda self, i, *args: (i == 1 and sigterm()) or plain(self, i, *args))
    error = ended(photos, out, capsys, "--steps", "2", "--workers", "0")
    assert "stopped by SIGTERM after step 2, the last; the same command resumes the run" in error
    assert saved_step(out) == 2
    assert not list((out / "exported").iterdir())


@pytest.mark.parametrize("when", ["between saves", "at the last step"])
def test_a_save_that_hangs(photos, out, capsys, monkeypatch, answer, gate, when):
    """The disk is a stand-in: one that really hangs would not let go of the tests either."""
    answer("the save of step 4 has made no progress", after=0.3)
    plain = checkpoints.save

    def save(folder, checkpoint, **options):
        if checkpoint.step > 2:
            gate.wait(120)
        return plain(folder, checkpoint, **options)

    monkeypatch.setattr(checkpoints, "save", save)
    steps = "99" if when == "between saves" else "4"
    error = ended(photos, out, capsys, "--steps", steps, "--save-every", "2", "--workers", "0")
    assert re.search(r"by SIGTERM; the save of step 4 has made no progress for \d s; nothing saved since", error)
    assert "nothing saved since step 2; the same command resumes the run" in error
    assert saved_step(out) == 2


def test_a_save_that_hangs_ends_within_the_promised_time(photos, out, capsys, monkeypatch, gate):
    """15 s from the signal, of which the save may do nothing for 10 s."""
    begin = []

    def save(folder, checkpoint, **options):
        begin.append(time.monotonic())
        sigterm()
        gate.wait(120)

    monkeypatch.setattr(checkpoints, "save", save)
    ended(photos, out, capsys, "--steps", "99", "--save-every", "2", "--workers", "0")
    assert time.monotonic() - begin[0] < 15


def test_a_save_that_is_slow_is_finished(photos, out, capsys, monkeypatch):
    plain, seconds = checkpoints.save, 1.0

    def save(folder, checkpoint, *, between, **options):
        written = plain(folder, checkpoint, between=between, **options)
        if checkpoint.step == 2:
            monkeypatch.setattr(watchdog, "STALLED", 60)  # of whatever comes
            sigterm()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                between()
        return written

    monkeypatch.setattr(watchdog, "STALLED", seconds / 2)
    monkeypatch.setattr(checkpoints, "save", save)
    ended(photos, out, capsys, "--steps", "99", "--save-every", "2", "--workers", "0")
    assert saved_step(out) == steps_logged(out)[-1]


def test_pictures_that_hang(photos, out, capsys, caplog, monkeypatch, answer, gate):
    answer("the save of step 2 has made no progress", after=0.3)
    drawn = []
    monkeypatch.setattr(HeldOutEvaluation, "snapshot", lambda *args: lambda: drawn.append(gate.wait(120)))
    ended(photos, out, capsys, "--steps", "99", "--save-every", "2", "--workers", "0")
    assert "s since its files were written; its pictures are abandoned" in caplog.text
    assert saved_step(out) == steps_logged(out)[-1] > 2
    assert not drawn


def test_a_signal_in_the_middle_of_a_print(monkeypatch):
    class Terminal(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            sigterm()
            return len(data)

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Terminal())))
    with StopSignals() as signals:
        print("step 1", flush=True)
    assert signals.pending()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_second_interrupt_in_the_middle_of_a_finalizer():
    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def interrupted_twice():
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.pending()
            Dying()  # Python drops what its __del__ raises
            assert signals.pending()

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()


def test_no_handler_of_errors_takes_it_for_one():
    assert not issubclass(Terminated, Exception)

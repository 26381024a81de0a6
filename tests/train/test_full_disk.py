"""A disk that fills in the middle of a run costs nothing but what had no room, and that for a while."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import commands
import numpy as np
import pytest
from disk import full_disk
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bimkern.files.append import AppendOnlyFile
from bimkern.train.checkpoint import store as checkpoints


class Run:
    """The real command in a process of its own, whose files can be kept from growing without touching ours."""

    def __init__(self, folder, out, *prefix):
        photos, self.out = folder / "photos", out
        photos.mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / "one.png")
        options = ["--steps", "100000", "--save-every", "20", "--log-every", "1", "--workers", "0"]
        command = ["bimkern.pretrain", "bim_vit_test", "--data", photos, "--out", self.out, *options]
        self.process = commands.Command(
            [*prefix, sys.executable, "-m", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.warnings = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.warnings.append(line.decode())

    def limit(self, file_size):
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))

    def wait_for(self, condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None, self.warnings
            assert time.monotonic() < deadline, self.warnings
            time.sleep(0.005)

    def said(self, text):
        return [line for line in self.warnings if text in line]

    def steps_in_metrics(self):
        """Return the logged steps; a line that is torn is an error, but for the last, which may be half-way."""
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("\n")]

    def steps_in_tensorboard(self):
        events = EventAccumulator(str(self.out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        return [event.step for event in events.Scalars("loss")]

    def check_pictures(self):
        for name in ("reconstruction", "curves", "memory"):
            Image.open(self.out / "pictures" / f"{name}.png").verify()

    def end(self):
        self.process.kill_all()
        self._reader.join(10)


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path, tmp_path / "run")
    yield run
    run.end()


@pytest.fixture
def disk(tmp_path):
    """Run on a small disk; yield the run, and the disk's folder as it is seen from here, also when the run is gone."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = f'mount -t tmpfs -o size=12m,nr_inodes=100 tmpfs "{folder}"'
    allowed = commands.run(["unshare", "-rm", "sh", "-c", mount])
    if allowed.returncode:
        pytest.skip(f"no disk of one's own may be mounted here: {allowed.stderr.strip()}")
    run = Run(tmp_path, folder / "run", "unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh")
    run.wait_for(Path(f"/proc/{run.process.pid}/root{folder}/run").is_dir)
    descriptor = os.open(f"/proc/{run.process.pid}/root{folder}", os.O_RDONLY)
    run.out = Path(f"/proc/self/fd/{descriptor}/run")
    yield run, run.out.parent
    run.end()
    os.close(descriptor)


def fill_with_bytes(folder):
    with (folder / "filler").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left on device"):
        sum(file.write(bytes(2**16)) for _ in range(10**4))


def fill_with_names(folder):
    with pytest.raises(OSError, match="No space left on device"):
        all((folder / f"filler-{i}").touch() is None for i in range(10**4))


def test_a_disk_without_blocks_and_then_without_names_stops_no_run(disk):
    run, folder = disk
    run.wait_for(lambda: (run.out / "pictures" / "memory.png").is_file())
    # Filled again and again: a save that fails, or drops an old one, gives some room back.
    run.wait_for(lambda: fill_with_bytes(folder) or run.said("No space left on device); training continues, the next"))
    run.wait_for(lambda: fill_with_names(folder) or run.said("/checkpoints/.writing-step"))
    run.wait_for(lambda: run.said("pictures cannot be written"))
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(60) == 143
    run.end()
    saved = checkpoints.newest_intact(run.out / "checkpoints").step
    (said,) = run.said("stopped by SIGTERM after step")
    assert f"; nothing saved since step {saved}; the same command resumes the run" in said
    assert len(run.said("retrying in")) == 2
    assert not run.said("Traceback")
    steps = run.steps_in_metrics()
    assert steps == list(range(1, steps[-1] + 1))
    run.check_pictures()
    assert not [*(run.out / "pictures").glob(".*"), *(run.out / "checkpoints").glob(".*")]


def test_training_continues_and_what_had_no_room_is_written_later(run):
    run.wait_for(lambda: (run.out / "pictures" / "memory.png").is_file())
    full = (run.out / "metrics.jsonl").stat().st_size + 100  # a third of a line
    run.limit(full)
    run.wait_for(lambda: len(run.said("training continues, the next save is after 20 steps")) >= 2)
    run.wait_for(lambda: run.said("pictures cannot be written"))
    before = run.steps_in_metrics()
    assert (run.out / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert (run.out / "metrics.jsonl").stat().st_size <= full
    run.check_pictures()
    run.limit(resource.RLIM_INFINITY)
    run.wait_for(lambda: run.steps_in_metrics()[-1] > before[-1] + 40)
    for what in ("metrics.jsonl", "tensorboard/events", "pictures"):
        assert len(run.said(what)) == 1
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(60) == 143
    steps = run.steps_in_metrics()
    assert steps == list(range(1, steps[-1] + 1))
    assert run.steps_in_tensorboard() == steps
    assert checkpoints.load_latest(run.out / "checkpoints").step == steps[-1]
    run.check_pictures()
    assert not list((run.out / "pictures").glob(".*"))


def test_a_piece_is_never_torn_and_those_behind_it_wait(tmp_path, caplog):
    file = AppendOnlyFile(tmp_path / "log")
    pieces = [bytes([65 + i]) * 1000 for i in range(12)]
    for failure in (1, 2):
        written, waiting = pieces[: 6 * failure - 3], pieces[6 * failure - 3 : 6 * failure]
        for piece in written[-3:]:
            file.append(piece)
        with full_disk(len(written) * 1000 + 500):
            for piece in waiting:
                file.append(piece)
        assert (tmp_path / "log").read_bytes() == b"".join(written)
        assert caplog.text.count("log cannot be written") == failure
    file.append(b"end")
    assert (tmp_path / "log").read_bytes() == b"".join([*pieces, b"end"])


def test_what_never_found_room_is_counted_at_the_end(tmp_path, caplog):
    file = AppendOnlyFile(tmp_path / "log")
    with full_disk(1500):
        for _ in range(3):
            file.append(b"x" * 1000)
        file.close()
    assert "log lacks its last 2 records" in caplog.text
    assert (tmp_path / "log").stat().st_size == 1000


def test_waiting_pieces_can_be_forgotten(tmp_path):
    file = AppendOnlyFile(tmp_path / "log")
    file.append(b"a" * 1000)
    with full_disk(1500):
        for piece in (b"b", b"c", b"d"):
            file.append(piece * 1000)
        file.truncate(0, keep=lambda piece: piece.startswith(b"c"))
        assert (tmp_path / "log").stat().st_size == 0
    file.append(b"e")
    assert (tmp_path / "log").read_bytes() == b"c" * 1000 + b"e"

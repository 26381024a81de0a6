"""A run outlives the reader of its output."""

import io
import os
import signal
import sys
import threading
from contextlib import suppress

import pytest
from bad_files import picture

from bimkern.cli import command
from bimkern.output import has_room, printing, say
from bimkern.pretrain import main
from bimkern.train.pretraining import Pretraining


@pytest.fixture
def pipe():
    """Both ends of a pipe; the first may be closed."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as writer:
        yield reader, writer
        reader.close()  # or closing the other end might wait


@pytest.fixture
def full_pipe(pipe):
    reader, writer = pipe
    os.set_blocking(writer.fileno(), False)
    try:
        while True:
            os.write(writer.fileno(), b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer.fileno(), True)
    timer = threading.Timer(20, reader.close)  # a run that waits for the reader then gets an error
    timer.start()
    yield pipe
    timer.cancel()
    timer.join()


@pytest.fixture
def run(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(8):
        picture(50, 40, seed=i).save(tmp_path / "photos" / f"{i}.png")
    paths = ["--data", str(tmp_path / "photos"), "--out", str(tmp_path / "run")]
    return lambda: main(["mae_vit_test", *paths, "--steps", "3", "--log-every", "1", "--workers", "0"])


def test_lines_that_are_read(pipe):
    say("one", pipe[1])
    say("two", pipe[1])
    assert pipe[0].read1() == b"one\ntwo\n"


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", b"\\udce9 \xe2\x82\xac\n"), ("ascii", b"\\udce9 \\u20ac\n")])
def test_names_that_are_no_text_are_escaped(monkeypatch, encoding, shown):
    """Of a file whose name is not in UTF-8, or in an encoding that lacks a letter."""
    name = os.fsdecode(b"\xe9") + " \u20ac"
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="\n")
    monkeypatch.setattr(sys, "stdout", stdout)
    say(name)
    with printing():
        print(name)
    assert stdout.buffer.getvalue() == 2 * shown
    assert stdout.errors == "strict"


def test_output_to_a_full_disk_ends_nothing():
    said = []
    with suppress(OSError), open("/dev/full", "w") as full:  # closing it fails
        for line in ("one", "two"):
            say(line, full)
            said.append(line)
    assert said == ["one", "two"]


def test_a_command_that_cannot_print_ends_in_a_line(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stop, printing():
            print("words")
    assert stop.value.code == 1
    assert capsys.readouterr().err == "what is printed cannot be written ([Errno 28] No space left on device)\n"


def test_a_run_continues_when_its_reader_is_gone(pipe, run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", pipe[1])
    pipe[0].close()
    run()
    assert (tmp_path / "run" / "pictures" / "curves.png").is_file()


def test_a_run_ends_by_a_signal_though_its_pipe_is_full(full_pipe, run, monkeypatch):
    plain = Pretraining.step

    def step(self, index, batch, memory):
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, index, batch, memory)

    monkeypatch.setattr(Pretraining, "step", step)
    monkeypatch.setattr(sys, "stdout", full_pipe[1])
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 143
    assert not full_pipe[0].closed


def test_the_last_word_waits_for_no_reader(full_pipe, monkeypatch):
    monkeypatch.setattr(sys, "stderr", full_pipe[1])
    assert not has_room(sys.stderr)
    with pytest.raises(SystemExit):
        command.end("program", "stopped", exit_code=143)
    assert not full_pipe[0].closed

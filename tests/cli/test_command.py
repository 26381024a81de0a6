"""What all commands share: a reader that closes its pipe ends them without a word, a mistake or Ctrl-C in a line."""

import errno
import importlib
import signal
import subprocess
import sys

import commands
import pytest

from bimkern.cli import command
from bimkern.train.config.run import ConfigError

COMMANDS = (
    ("bimkern.pretrain", "--help"),
    ("bimkern.pretrain", "mae_vit_test", "--dry-run"),
    ("bimkern.plan", "mae_vit_test"),
    ("bimkern.export", "--help"),
    ("bimkern.info",),
    ("bench", "--help"),
    ("bench", "--list"),
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_closed_pipe_ends_a_command_without_a_word(arguments):
    command = commands.Command(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait(timeout=60) == -signal.SIGPIPE


@pytest.mark.parametrize(
    ("error", "line", "exit_code"),
    [
        (KeyboardInterrupt(), "interrupted", 130),
        (OSError(28, "No space left on device"), "cannot continue ([Errno 28] No space left on device)", 1),
        (OSError(errno.ENAMETOOLONG, "File name too long", "longer"), "longer: File name too long", 2),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "File name too long", 2),
        (ConfigError("--k is wrong"), "--k is wrong", 2),
    ],
)
@pytest.mark.parametrize("name", ["probe", "attention", "plan", "export"])
def test_a_command_that_keeps_nothing_ends_in_a_line(name, error, line, exit_code, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    program = importlib.import_module(f"bimkern.{name}")
    monkeypatch.setattr(command, "parse", fail)
    with pytest.raises(SystemExit) as stop:
        program.main([])
    assert stop.value.code == exit_code
    assert capsys.readouterr().err == f"python -m bimkern.{name}: {line}\n"

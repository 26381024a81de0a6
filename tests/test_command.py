"""What all commands share: a reader that closes its pipe ends them without a word."""

import signal
import subprocess
import sys

import pytest

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
    command = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait(timeout=60) == -signal.SIGPIPE

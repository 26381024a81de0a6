"""What tests start ends with them: commands at their limit, with all that they started, and ranks that hang."""

import os
import signal
import subprocess
import sys
import time

import commands
import leftovers
import pytest
from rank_processes import RankProcesses

# Prints its child's process id, which holds its pipes, and ends; or stays, too.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(float(sys.argv[1]))
"""


def has_ended(pid):
    """Return whether a process that is not ours has ended; one that waits to be reaped has."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def eventually(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("stays", [0, 600])
def test_a_command_and_what_it_started_end_at_the_limit_and_show_what_they_printed(stays):
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"not ended within 2 s: (.|\n)*child \d+") as error:
        commands.run([sys.executable, "-c", PARENT, f"{stays}"], timeout=2)
    assert time.monotonic() - began < 30
    eventually(lambda: has_ended(str(error.value).split()[-1]))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_that_a_test_leaves_running_ends_with_it():
    command = commands.Command([sys.executable, "-c", PARENT, "600"], stdout=subprocess.PIPE, text=True)
    child = command.stdout.readline().split()[1]
    leftovers.end_all()
    assert command.returncode == -signal.SIGKILL
    eventually(lambda: has_ended(child))


def test_a_command_that_fails_shows_what_it_printed():
    code = "import sys; print('to stdout'); sys.exit('to stderr')"
    with pytest.raises(AssertionError, match=r"ended with 1\nto stdout\n\nto stderr"):
        commands.run([sys.executable, "-c", code], check=True)
    done = commands.run([sys.executable, "-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (1, "to stdout\n", "to stderr\n")


def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


def test_ranks_that_a_test_leaves_hanging_end_with_it(tmp_path):
    ranks = RankProcesses(stopped, 2, tmp_path)
    leftovers.end_all()
    assert [process.exitcode for process in ranks.processes] == [-signal.SIGKILL] * 2

"""Commands in process groups of their own, each with a limit: at the limit, all that a command started is killed.

subprocess.run() kills the command alone, and then waits for its pipes, which processes that it started may hold.
"""

import os
import signal
import subprocess
from contextlib import suppress

import leftovers

LIMIT = 240  # seconds
_REST = 10  # seconds, in which pipes end whose writers were all killed


class Command(subprocess.Popen):
    """A command in the background, which ends with the test that started it; waiting for it has a limit."""

    def __init__(self, command, **options):
        super().__init__(command, start_new_session=True, **options)
        leftovers.add(self.kill_all)

    def kill_all(self):
        """Kill it and all processes of its group, also those that it left behind."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            super().wait(_REST)

    def wait(self, timeout=LIMIT):
        try:
            return super().wait(timeout)
        except subprocess.TimeoutExpired:
            self._fail(timeout)

    def communicate(self, input=None, timeout=LIMIT):
        try:
            return super().communicate(input, timeout)
        except subprocess.TimeoutExpired:
            self._fail(timeout)

    def _fail(self, timeout):
        """Kill all of it, and show what it has printed."""
        self.kill_all()
        printed = ["(not read)"]
        with suppress(subprocess.TimeoutExpired, ValueError):
            printed = [
                text if isinstance(text, str) else text.decode() for text in super().communicate(None, _REST) if text
            ]
        raise AssertionError(f"not ended within {timeout} s: {self.args}\n" + "\n".join(printed))


def run(command, *, timeout=LIMIT, check=False, capture_output=True, text=True, **options):
    """Do what subprocess.run() does, for a command and all that it starts; what it prints is read by default."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = Command(command, text=text, **options)
    stdout, stderr = process.communicate(timeout=timeout)
    done = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    assert not (check and done.returncode), f"{command} ended with {done.returncode}\n{stdout}\n{stderr}"
    return done

"""Commands in forks of a server that has imported torch, which start at once instead of after two seconds.

For tests of what a command does; how its process begins and ends is for real ones, from commands.py.
"""

import importlib
import os
import runpy
import signal
import sys
import threading
from contextlib import nullcontext, suppress
from multiprocessing import Pipe
from pathlib import Path

import leftovers
from rank_processes import SERVER
from traces import traced_once
from whole_process import end_with

LIMIT = 240  # seconds


class ForkedCommand:
    """`python ARGUMENTS` in a process group of its own; it ends with the test that started it, or at the limit."""

    def __init__(self, arguments, *, folder=".", variables=None, undrawn=False):
        """Start it in a folder, with more variables of the environment; `undrawn`: without pictures."""
        arguments = [os.fspath(argument) for argument in arguments]
        (out, its_out), (error, its_error) = Pipe(duplex=False), Pipe(duplex=False)
        given = (arguments, os.path.abspath(folder), variables or {}, undrawn)
        self._process = SERVER.Process(target=_run, args=(*given, its_out, its_error))
        self._process.start()
        its_out.close()
        its_error.close()
        self.pid = self._process.pid
        self.stdout, self.stderr = (open(os.dup(end.fileno())) for end in (out, error))  # noqa: SIM115
        self._limit = threading.Timer(LIMIT, self.kill_all)
        self._limit.start()
        leftovers.add(self._end)

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def kill_all(self):
        """Kill it and all that it started."""
        self._process.kill()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout=LIMIT):
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"not ended within {timeout} s"
        return self._process.exitcode

    def communicate(self, timeout=LIMIT):
        """Wait for its end; return what it wrote to stdout and stderr."""
        errors = []
        reader = threading.Thread(target=lambda: errors.append(self.stderr.read()), daemon=True)
        reader.start()
        output = self.stdout.read()
        reader.join()
        self.wait(timeout)
        return output, errors[0]

    def _end(self):
        self._limit.cancel()
        self.kill_all()
        self._process.join(10)
        self.stdout.close()
        self.stderr.close()


def _run(arguments, folder, variables, undrawn, stdout, stderr):
    os.setsid()
    os.environ.update(variables)
    os.chdir(folder)
    for number, connection in ((1, stdout), (2, stderr)):
        os.dup2(connection.fileno(), number)
        connection.close()

    def run():
        with traced_once(), _drawing(not undrawn):
            _run_python(*arguments)

    end_with(run)


def _drawing(pictures):
    if pictures:
        return nullcontext()
    from undrawn import undrawn

    return undrawn()


def _run_python(first, *others):
    """Do what Python does with these arguments: -m, a module of ours and its arguments, or a file and those."""
    if first == "-m":
        module, *others = others
        sys.argv[:] = [module, *others]
        sys.path.insert(0, "")
        program = importlib.import_module(module)
        getattr(program, "script", program.main)()
    else:
        sys.argv[:] = [first, *others]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")

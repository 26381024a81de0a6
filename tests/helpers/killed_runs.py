"""Tiny runs on one source each, killed in mid-epoch by SIGKILL, in processes forked from one that has imported all."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from bimkern.api import pretrain

KILLED_AT = 3  # the step before is saved; of 12 images, five a step, it takes the last two and the first three
LAST = 4
_OPTIONS = {"steps": 9, "batch_size": 5, "save_every": 2, "log_every": 1}
_LIMIT = 60  # seconds that a checkpoint may take
FOLDER = "BIMKERN_TEST_NUMBERED"  # names the folder that Numbered reads


class Numbered:
    """A user's own source: the files of a folder."""

    def __init__(self):
        self._files = sorted(Path(os.environ[FOLDER]).iterdir())

    def __len__(self):
        return len(self._files)

    def read(self, i):
        return self._files[i].read_bytes()


class Ended(Exception):
    pass


def train(data, out, last=LAST, on_step=None, workers=0):
    """Train up to a step, where the run ends without the pictures and the checkpoint that take most of its time."""

    def act(step):
        if on_step is not None:
            on_step(step.step)
        if step.step == last:
            raise Ended

    with suppress(Ended):
        pretrain("mae_vit_test", data=data, out=out, on_step=act, workers=workers, **_OPTIONS)


def killed_runs(forms):
    """Kill a run on each form, of which `forms` has what --data names and the run folder; return their exit codes."""
    return [_killed_run(data, out) for data, out in forms]


def _killed_run(data, out):
    process = os.fork()
    if process == 0:
        try:
            train(data, out, on_step=lambda step: _kill_at(step, out), workers=1)
        finally:
            os._exit(1)  # it was not killed
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _kill_at(step, out):
    """Kill this process at a step that is no checkpoint, once the one before is written."""
    if step != KILLED_AT:
        return
    end = time.monotonic() + _LIMIT
    while not os.path.isdir(f"{out}/checkpoints/step-{KILLED_AT - 1:08d}") and time.monotonic() < end:
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)

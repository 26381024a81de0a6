"""Runs without what takes longer than a small run's steps, and what few tests look at.

Pictures are one such thing. The other is the check that memory suffices: for it a step is traced on fake tensors.
"""

from contextlib import contextmanager

import pytest

from bimkern.train import run
from bimkern.train.finetuning import run as finetuning
from bimkern.train.trainer import Trainer


@contextmanager
def undrawn(*, found=False):
    """Let runs of this process draw nothing; `found`: but find what they would draw, in which all ranks take part."""
    snapshot = Trainer._snapshot

    def nothing_drawn(*given):
        if found:
            snapshot(*given)
        return lambda: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_snapshot", nothing_drawn)
        yield


@contextmanager
def unestimated():
    """Let runs of this process begin without an estimate of their memory."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (run, finetuning):
            patch.setattr(module, "check_memory", lambda *_, **__: None)
        yield

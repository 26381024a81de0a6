"""Runs that draw nothing: pictures take longer than a small run's steps, and only tests of pictures look at them."""

from contextlib import contextmanager

import pytest

from bimkern.train.trainer import Trainer


@contextmanager
def undrawn():
    """Let runs of this process draw nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_snapshot", lambda *_: lambda: None)
        yield

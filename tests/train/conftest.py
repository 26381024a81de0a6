"""What the runs of these tests have in common is worked out once."""

from dataclasses import replace

import pytest

from bimkern.train.memory.budget import Needs

# What a step needs does not depend on these.
ANY = {
    **{name: None for name in ("data", "out", "steps", "workers")},
    **{name: 1 for name in ("epochs", "base_lr", "log_every", "save_every", "max_pixels")},
    **{"seed": 0, "loader": "auto", "max_bad_ratio": 0.0, "arena": "auto"},
}


@pytest.fixture(scope="session", autouse=True)
def needs_counted_once():
    """Runs of a kind ask how much memory a step needs; counting takes longer than their few steps."""
    count, known = Needs.least, {}

    def least(needs, config):
        if config.run.teacher is not None:  # a file, whose content may change
            return count(needs, config)
        kind = (needs._scaling._alignment, replace(config, run=replace(config.run, **ANY)))
        if kind not in known:
            known[kind] = count(needs, config)
        return known[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Needs, "least", least)
        yield

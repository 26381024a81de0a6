"""What the runs of these tests have in common is worked out once."""

from dataclasses import replace

import pytest

from bimkern.train.config.run import RunConfig
from bimkern.train.memory.budget import Needs

# What a step needs does not depend on these.
ANY = (
    *("data", "out", "epochs", "steps", "base_lr", "seed", "loader", "workers", "max_bad_ratio", "max_pixels"),
    *("arena", "log_every", "save_every"),
)


@pytest.fixture(scope="session", autouse=True)
def needs_counted_once():
    """Runs of a kind ask how much memory a step needs; counting takes longer than their few steps."""
    count, known = Needs.least, {}

    def least(needs, config):
        if config.run.teacher is not None:  # a file, whose content may change
            return count(needs, config)
        any_run = {name: getattr(RunConfig, name) for name in ANY}
        kind = (needs._scaling._alignment, replace(config, run=replace(config.run, **any_run)))
        if kind not in known:
            known[kind] = count(needs, config)
        return known[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Needs, "least", least)
        yield

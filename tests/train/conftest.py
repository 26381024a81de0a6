"""What the runs of these tests have in common is worked out once."""

from dataclasses import replace

import pytest

from bimkern.train.config.run import RunConfig
from bimkern.train.memory.budget import MemoryEstimator

# The memory of a step does not depend on these.
ANY = (
    *("data", "out", "epochs", "steps", "base_lr", "seed", "loader", "workers", "max_bad_ratio", "max_pixels"),
    *("arena", "jpeg_draft", "log", "log_every", "save_every"),
)


@pytest.fixture(scope="session", autouse=True)
def memory_estimated_once():
    """Estimate the memory of a step once for all runs with the same one: that takes longer than the steps of a test."""
    estimate, known = MemoryEstimator.lower_bound, {}

    def lower_bound(estimator, config):
        if config.run.teacher is not None:  # a file, whose content may change
            return estimate(estimator, config)
        any_run = {name: getattr(RunConfig, name) for name in ANY}
        kind = (estimator._extrapolation._alignment, replace(config, run=replace(config.run, **any_run)))
        if kind not in known:
            known[kind] = estimate(estimator, config)
        return known[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryEstimator, "lower_bound", lower_bound)
        yield

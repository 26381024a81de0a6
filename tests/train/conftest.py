"""What the runs of these tests have in common is worked out once."""

import pytest

from bimkern.train.memory import extrapolate


@pytest.fixture(scope="session", autouse=True)
def steps_traced_once():
    """Trace a step once for all runs whose memory is extrapolated from it: that takes longer than the steps of a test.

    Their sizes, and all that is not of a step, may differ.
    """
    trace, known = extrapolate._Step, {}

    def step(config, *kind):
        if config.run.teacher is not None:  # a file, whose content may change
            return trace(config, *kind)
        key = (config.method, config.run.precision, *kind)
        if key not in known:
            known[key] = trace(config, *kind)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extrapolate, "_Step", step)
        yield

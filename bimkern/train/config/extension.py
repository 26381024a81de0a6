"""Extension: a finished run continues under the schedule of a longer one.

Schedules are functions of progress, so an extended run needs nothing but its new length: progress falls back to the
share of the longer run that is done, as in timm and the published programs when they resume with more epochs. The
learning rate jumps up at once, as at a restart of SGDR (Loshchilov & Hutter 2017), while the optimizer keeps its state.
Layers that would not be frozen yet learn again.
"""

from dataclasses import replace
from typing import Any

from bimkern.train.config.run import ConfigError, TrainingConfig


def extends(config: TrainingConfig, saved: Any, done: int, num_images: int, what: str) -> bool:
    """Return whether a run of a saved config, so many steps of which are done, is to be extended to this config.

    Args:
        config: of the run that continues, alike but for its length.
        saved: the JSON of the config of the checkpoint.
        done: steps that are done.
        num_images: of the run.
        what: the run, for messages.

    Raises:
        ConfigError: it is longer than that, is not finished, or its first steps would be others in the longer run.
    """
    run = replace(config.run, epochs=saved["run"]["epochs"], steps=saved["run"]["steps"])
    before, now = (each.step_layout(num_images) for each in (replace(config, run=run), config))
    if before == now:
        return False
    if now.num_steps <= before.num_steps:
        raise ConfigError(
            f"--extend: {what} already has {before.num_steps} steps; raise --epochs or --steps, got {now.num_steps}"
        )
    if done < before.num_steps:
        raise ConfigError(
            f"--extend: {what} has done {done} of its {before.num_steps} steps; finish it first, with the options that "
            f"it was begun with"
        )
    if before.segments != now.segments:
        raise ConfigError(
            f"--extend: {what} changes its image size at shares of its length, so that the steps it has done would be "
            f"others in a longer run; choose another --out, and --init to start from its weights"
        )
    return True

"""Pre-training from Python: what `python -m bimkern.pretrain` does, as a function.

Call-backs watch a run. Its outcome has the trained model, the logged records and the paths of the run folder.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from bimkern import command
from bimkern.errors import closest
from bimkern.recipes import Recipe
from bimkern.recipes.find import find_config
from bimkern.train.callbacks import Callbacks, FinishedStep, Saved
from bimkern.train.config.overrides import with_overrides
from bimkern.train.config.run import Config, ConfigError, RunConfig
from bimkern.train.run import Outcome, run
from bimkern.train.signals import Stopped

__all__ = ["FinishedStep", "Outcome", "Saved", "pretrain"]

_OPTIONS = [option.name for option in fields(RunConfig)]


def pretrain(
    recipe: str | Recipe | Config,
    *,
    set: Mapping[str, Any] = MappingProxyType({}),
    on_step: Callable[[FinishedStep], object] | None = None,
    on_save: Callable[[Saved], object] | None = None,
    on_end: Callable[[Outcome], object] | None = None,
    **options: Any,
) -> Outcome:
    """Pre-train an encoder, from the last checkpoint in the run folder or from the start, to the end.

    Call-backs run in the calling thread, between two steps, and do not change what is trained. What one raises ends
    the run; the same call then resumes it from the last checkpoint.

    Args:
        recipe: the name of a recipe, my_file.py:my_recipe, my_package.module:my_recipe, a Recipe or a Config.
        set: values by the paths of fields of the config, as in {"method.encoder.depth": 6}.
        on_step: called after every step; on a GPU it waits for the step.
        on_save: called once for every checkpoint, when it is written and the pictures are drawn.
        on_end: called with what is then returned.
        **options: fields of RunConfig, which are the options of the command: data, out, epochs, steps, batch_size, ...

    Returns:
        The config, the run folder with its paths, the errors on held-out images, the model, and the logged records.

    Raises:
        BimkernError: all errors that end the command; the message is the line that it prints. Among them are
            ConfigError, of a wrong argument, and Stopped, of an interrupt (SIGINT, SIGTERM) that the run has saved at.

    Same as: bimkern.train.run.run, which takes a complete config.
    """
    config = _configure(recipe, set, options)
    try:
        outcome = run(config, Callbacks(on_step=on_step, on_save=on_save))
    except Stopped as stopped:
        stopped.add_note("The same call resumes the run.")
        raise
    if on_end is not None:
        on_end(outcome)
    return outcome


def _configure(recipe: str | Recipe | Config, changes: Mapping[str, Any], options: Mapping[str, Any]) -> Config:
    """Return the config of a run: a recipe's, with other values in some fields."""
    if not isinstance(changes, Mapping) or not all(isinstance(path, str) for path in changes):
        raise ConfigError(f'set must hold values by paths, as in {{"method.encoder.depth": 6}}, got {changes!r}')
    for name in options:
        if name not in _OPTIONS:
            elsewhere = 'fields of the config are given by set={"method.encoder.depth": 6}'
            raise ConfigError(f"pretrain has no option {name!r} ({elsewhere}); {closest(name, _OPTIONS)}")
        if f"run.{name}" in changes:
            raise ConfigError(f"{name} is given twice, as an option and as run.{name} in set; give it once")
    if isinstance(recipe, str):
        recipe = find_config(recipe)
    base = recipe.config if isinstance(recipe, Recipe) else recipe
    if not isinstance(base, Config):
        raise ConfigError(f"recipe must be the name of one, a Recipe or a Config, got {type(base).__name__}")
    config = with_overrides(base, {**changes, **{f"run.{name}": value for name, value in options.items()}})
    command.check_parts(options, config.run)
    return config

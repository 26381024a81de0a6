"""Pre-training and fine-tuning from Python: what the two commands do, as functions.

Call-backs watch a run. Its outcome has the trained model, the logged records and the paths of the run folder.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from types import MappingProxyType
from typing import Any, TypeVar

from bimkern.cli import command
from bimkern.errors import closest
from bimkern.recipes import Recipe
from bimkern.recipes.find import find_config, find_finetune_config
from bimkern.train.callbacks import Callbacks, FinishedStep, Saved
from bimkern.train.config.finetuning import FinetuneConfig
from bimkern.train.config.overrides import with_overrides
from bimkern.train.config.run import Config, ConfigError, TrainingConfig
from bimkern.train.finetuning import run as finetuning
from bimkern.train.finetuning.run import Finetuned
from bimkern.train.run import Outcome, run
from bimkern.train.signals import Stopped

__all__ = ["Finetuned", "FinishedStep", "Outcome", "Saved", "finetune", "pretrain"]

C = TypeVar("C", bound=TrainingConfig)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def pretrain(
    recipe: str | Recipe[Config] | Config,
    *,
    set: Mapping[str, Any] = _NOTHING,
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
    config = _configure("pretrain", recipe, Config, find_config, {"method.encoder.depth": 6}, set, options)
    with _resumed_by_the_same_call():
        outcome = run(config, Callbacks(on_step=on_step, on_save=on_save))
    if on_end is not None:
        on_end(outcome)
    return outcome


def finetune(
    recipe: str | Recipe[FinetuneConfig] | FinetuneConfig,
    *,
    set: Mapping[str, Any] = _NOTHING,
    on_step: Callable[[FinishedStep], object] | None = None,
    on_save: Callable[[Saved], object] | None = None,
    on_end: Callable[[Finetuned], object] | None = None,
    **options: Any,
) -> Finetuned:
    """Fine-tune a trained encoder on labeled images, from the last checkpoint in the run folder or from the start.

    Args:
        recipe: as for pretrain, of fine-tuning: a name, a Recipe that holds a FinetuneConfig, or a FinetuneConfig.
        set: values by the paths of fields of the config, as in {"layer_decay": 0.7}.
        on_step: called after every step, likewise on_save and on_end, as by pretrain.
        on_save: see there.
        on_end: see there.
        **options: fields of FinetuneOptions, which are the options of the command: backbone, data, out, epochs, ...

    Returns:
        The config, the run folder with its paths, the classes, what the classifier makes of the held-out images, the
        classifier, and the logged records.

    Raises:
        BimkernError: as by pretrain.

    Same as: bimkern.train.finetuning.run.finetune, which takes a complete config.
    """
    config = _configure("finetune", recipe, FinetuneConfig, find_finetune_config, {"layer_decay": 0.7}, set, options)
    with _resumed_by_the_same_call():
        outcome = finetuning.finetune(config, Callbacks(on_step=on_step, on_save=on_save))
    if on_end is not None:
        on_end(outcome)
    return outcome


def _configure(
    function: str,
    recipe: str | Recipe[C] | C,
    kind: type[C],
    find: Callable[[str], C],
    example: Mapping[str, Any],
    changes: Mapping[str, Any],
    options: Mapping[str, Any],
) -> C:
    """Return the config of a run: a recipe's, with other values in some fields. An example of these is for messages."""
    if isinstance(recipe, str):
        recipe = find(recipe)
    base: Any = recipe.config if isinstance(recipe, Recipe) else recipe
    if not isinstance(base, kind):
        wanted = f"recipe must be the name of one, a Recipe or a {kind.__name__}"
        raise ConfigError(f"{wanted}, got {type(base).__name__}")
    example_text = str(dict(example)).replace("'", '"')
    if not isinstance(changes, Mapping) or not all(isinstance(path, str) for path in changes):
        raise ConfigError(f"set must hold values by paths, as in {example_text}, got {changes!r}")
    names = [option.name for option in fields(base.run)]
    for name in options:
        if name not in names:
            elsewhere = f"fields of the config are given by set={example_text}"
            raise ConfigError(f"{function} has no option {name!r} ({elsewhere}); {closest(name, names)}")
        if f"run.{name}" in changes:
            raise ConfigError(f"{name} is given twice, as an option and as run.{name} in set; give it once")
    config = with_overrides(base, {**changes, **{f"run.{name}": value for name, value in options.items()}})
    command.check_parts(options, config.run)
    return config


@contextmanager
def _resumed_by_the_same_call() -> Iterator[None]:
    try:
        yield
    except Stopped as stopped:
        stopped.add_note("The same call resumes the run.")
        raise

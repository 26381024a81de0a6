"""`python -m bimkern.pretrain [RECIPE] [options]`: pre-train an encoder on unlabeled images."""

import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from textwrap import fill

from bimkern import command
from bimkern.errors import BimkernError
from bimkern.importers.initialize import read_initial_weights
from bimkern.output import Warnings, printing
from bimkern.recipes import FAMILIES, RECIPES, SMALL_RECIPES, Recipe
from bimkern.train.config.run import ConfigError, RunConfig
from bimkern.train.reporting.summary import describe
from bimkern.train.run import Outcome, find_inputs, find_source, run
from bimkern.train.signals import Stopped, Terminated, terminated_at_once
from bimkern.watchdog import ending_at_once

_PROGRAM = "python -m bimkern.pretrain"
_DEFAULT_RECIPE = "demo"
_RESUMES = "; the same command resumes the run"


@dataclass(frozen=True, kw_only=True)
class Options(RunConfig):
    """Options of the command: those of a run, and what to do with it."""

    dry_run: bool = False
    """Print the resolved config, parameters, memory, steps and learning rate, then stop."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s %(message)s", handlers=[Warnings()])
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with an image goes to quarantine.jsonl
    try:
        with terminated_at_once():
            words = _run(arguments)
    except BimkernError as error:
        command.end(_PROGRAM, f"{error}{_RESUMES if isinstance(error, Stopped) else ''}", exit_code=error.exit_code)
    except Terminated:
        command.end(_PROGRAM, f"stopped by SIGTERM{_RESUMES}", exit_code=128 + signal.SIGTERM)
    except KeyboardInterrupt:
        command.end(_PROGRAM, f"interrupted{_RESUMES}", exit_code=128 + signal.SIGINT)
    except OSError as error:
        command.end(_PROGRAM, f"cannot continue ({error})", exit_code=1)
    with printing():
        print(words)


def _run(arguments: list[str]) -> str:
    """Run the command and return the text to print at the end."""
    recipe = command.take(arguments, RECIPES, "recipe", _DEFAULT_RECIPE)
    options = _parse_options(recipe, arguments)
    chosen = {option.name: getattr(options, option.name) for option in fields(RunConfig)}
    config = replace(recipe.config, run=RunConfig(**chosen))
    if options.dry_run:
        inputs = find_inputs(config)
        init = "" if config.run.init is None else f"\n{read_initial_weights(config, config.run.init).summary}"
        return describe(config, inputs.listing, inputs.loader_choice) + init
    return _closing_words(run(config))


def _parse_options(recipe: Recipe, arguments: list[str]) -> Options:
    """Parse options, with the defaults of the recipe."""
    usage, defaults = f"{_PROGRAM} [RECIPE]", Options(**vars(recipe.config.run))
    try:
        options = command.parse(Options, arguments, usage=usage, description=_help(recipe), default=defaults)
    except ConfigError as error:
        hint = "; the recipe comes first" if RECIPES.keys() & set(arguments) else ""
        raise ConfigError(f"{error}{hint}") from None
    command.check_parts(arguments, options)
    if "epochs" not in command.named(arguments) or options.steps is None:
        return options
    if "steps" in command.named(arguments):
        raise ConfigError("--epochs and --steps both say how long the run is; give one of them")
    return replace(options, steps=None)  # a recipe's, which the epochs replace


def _help(recipe: Recipe) -> str:
    width = max(len(known.name) for members in FAMILIES.values() for known in members)
    lines = []  # all indented, or the parser would join them
    for family, members in FAMILIES.items():
        lines += [f"  {family}:", *(f"    {known.name:{width}}  {known.summary}" for known in members)]
    small = fill(
        ", ".join(known.name for known in SMALL_RECIPES), 100, initial_indent=4 * " ", subsequent_indent=4 * " "
    )
    return (
        "Pre-train a vision transformer by masked image modeling.\n\n"
        f"Recipes (default: {_DEFAULT_RECIPE}; the option defaults below are those of {recipe.name}):\n"
        + "\n".join(lines)
        + f"\n  The same methods on a tiny ViT, for tests:\n{small}\n\n"
        "Examples:\n"
        f"  {_PROGRAM}\n"
        f"  {_PROGRAM} bim_vit_base --data photos --batch-size 256 --out runs/photos\n"
        f"  {_PROGRAM} mae_vit_large --dry-run"
    )


def _closing_words(outcome: Outcome) -> str:
    config, folder, stages = outcome.config, outcome.folder, outcome.held_out
    held_out = "other crops of the images"
    if config.run.held_out or find_source(config).held_out is not None:
        held_out = "images kept out of training"
    width = max(len(stage.name) for stage in stages)
    layout = "in our own layout" if config.method.encoder.layout("timm") is None else "for timm"
    notes = ["What was frozen before the end is evaluated as it was left."] if config.schedule.per_group else []
    if config.method.distillation is not None:
        notes.append("What the teacher adds to the loss is left out.")
    return "\n".join(
        [
            f"\nLoss on what is masked, {held_out}:",
            *(
                f"  {stage.name:{width}}  {stage.loss:#.3g}; the mean visible target would give {stage.mean_loss:#.3g}"
                for stage in stages
            ),
            *(f"({note})" for note in notes),
            f"\nWrote {folder.path}/\n"
            "  pictures/reconstruction.png  what is masked from each stage and what it predicts\n"
            "  pictures/curves.png, memory.png, and reconstruction-STEP.png for each save\n"
            "  metrics.jsonl, tensorboard/  every logged number\n"
            "  checkpoints/                 the last two and the best (state.json names it)\n"
            f"  exported/                    the encoder up to each head, {layout}\n\n"
            f"Next: look at {folder.pictures / 'reconstruction.png'}, or train on your own images:\n"
            f"  {_PROGRAM} bim_vit_base --data FOLDER --batch-size 256",
        ]
    )


def script() -> None:
    """Run as the script `bimkern-pretrain`, or by `python -m`."""
    with ending_at_once():
        main()


if __name__ == "__main__":
    script()

"""`python -m bimkern.pretrain [RECIPE] [options]`: pre-train an encoder on unlabeled images."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

from bimkern.cli import command
from bimkern.cli.config_options import DEFAULT_RECIPE, ConfigOptions, change_config, choose_config
from bimkern.cli.training import parse_options, run_command
from bimkern.distributed.launch import is_launched
from bimkern.importers.initialize import read_initial_weights
from bimkern.recipes import FAMILIES, RECIPES, SMALL_RECIPES, WITH_BACKBONE
from bimkern.train.config.file import to_toml
from bimkern.train.config.run import Config, RunConfig
from bimkern.train.reporting.summary import describe
from bimkern.train.run import Outcome, find_inputs, find_source, run
from bimkern.watchdog import ending_at_once

_PROGRAM = "python -m bimkern.pretrain"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which config to train, how this run goes, and what to do with both."""

    show: bool = False
    """Print the config, with all that is set, as a file to edit and to use with --config, then stop."""
    dry_run: bool = False
    """Print the resolved config, parameters, memory, steps and learning rate, then stop."""
    recipe: ConfigOptions
    run: RunConfig


def main(argv: Sequence[str] | None = None) -> None:
    run_command(_PROGRAM, _run, argv)


def _run(arguments: list[str]) -> str:
    """Run the command and return the text to print at the end."""
    base = choose_config(arguments)
    defaults, usage = Options(recipe=ConfigOptions.of(base), run=base.run), f"{_PROGRAM} [RECIPE]"
    options = parse_options(arguments, defaults, usage=usage, description=_help(base), recipes=RECIPES)
    config = change_config(base, options.recipe, options.run, arguments)
    command.check_parts(command.named(arguments), config.run)
    if options.show:
        return to_toml(config).rstrip()
    if options.dry_run:
        inputs = find_inputs(config)
        init = "" if config.run.init is None else f"\n{read_initial_weights(config, config.run.init).summary}"
        return describe(config, inputs.listing, inputs.loader_choice) + init
    return _closing_words(run(config))


def _help(config: Config) -> str:
    width = max(len(known.name) for members in FAMILIES.values() for known in members)
    lines = []  # all indented, or the parser would join them
    for family, members in FAMILIES.items():
        lines += [f"  {family}:", *(f"    {known.name:{width}}  {known.summary}" for known in members)]
    small = fill(
        ", ".join(known.name for known in SMALL_RECIPES), 100, initial_indent=4 * " ", subsequent_indent=4 * " "
    )
    return (
        "Pre-train a vision backbone by masked image modeling.\n\n"
        f"Recipes (default: {DEFAULT_RECIPE}; the option defaults below are those of {config.recipe}):\n"
        + "\n".join(lines)
        + "\n  On any backbone of timm with feature maps (--backbone NAME): "
        + ", ".join(WITH_BACKBONE)
        + f"\n  The same methods on tiny encoders, for tests:\n{small}\n\n"
        "Examples:\n"
        f"  {_PROGRAM}\n"
        f"  {_PROGRAM} bim_vit_base --data photos --batch-size 256 --out runs/photos\n"
        f"  {_PROGRAM} mae_vit_large --dry-run\n"
        f"  {_PROGRAM} fastmim --backbone convnextv2_tiny\n"
        f"  {_PROGRAM} mae_vit_base --mask-ratio 0.6 --set method.encoder.depth=6\n"
        f"  {_PROGRAM} mae_vit_base --show > mine.toml; {_PROGRAM} --config mine.toml\n"
        f"  {_PROGRAM} my_file.py:my_recipe  # a function in it that returns a Config"
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
            f"Next: look at {folder.pictures / 'reconstruction.png'}, test the encoder, or train on your own images:\n"
            f"  python -m bimkern.probe {folder.path}\n"
            f"  {_PROGRAM} bim_vit_base --data FOLDER --batch-size 256",
        ]
    )


def script() -> None:
    """Run as the script `bimkern-pretrain`, or by `python -m`."""
    with ending_at_once(native=is_launched()):
        main()


if __name__ == "__main__":
    script()

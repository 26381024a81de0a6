"""`python -m bimkern.finetune [RECIPE] --backbone RUN`: fine-tune a trained encoder on labeled images."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import indent

from bimkern.cli import command
from bimkern.cli.config_options import DEFAULT_RECIPE
from bimkern.cli.finetune_options import FinetuneConfigOptions, change_config, choose_config
from bimkern.cli.training import parse_options, run_command
from bimkern.distributed.launch import is_launched
from bimkern.exporters.import_line import import_line
from bimkern.recipes.finetuning import FINETUNE_FAMILIES, FINETUNE_RECIPES
from bimkern.train.config.file import to_toml
from bimkern.train.config.finetuning import FinetuneConfig, FinetuneOptions
from bimkern.train.finetuning.run import Finetuned, describe, finetune
from bimkern.watchdog import ending_at_once

_PROGRAM = "python -m bimkern.finetune"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which config to train, how this run goes, and what to do with both."""

    show: bool = False
    """Print the config, with all that is set, as a file to edit and to use with --config, then stop."""
    dry_run: bool = False
    """Read the backbone and list the images, print the resolved config, steps and learning rates, then stop."""
    recipe: FinetuneConfigOptions
    run: FinetuneOptions


def main(argv: Sequence[str] | None = None) -> None:
    run_command(_PROGRAM, _run, argv)


def _run(arguments: list[str]) -> str:
    """Run the command and return the text to print at the end."""
    base = choose_config(arguments)
    defaults = Options(recipe=FinetuneConfigOptions.of(base), run=base.run)
    usage = f"{_PROGRAM} [RECIPE] --backbone RUN"
    options = parse_options(arguments, defaults, usage=usage, description=_help(base), recipes=FINETUNE_RECIPES)
    config = change_config(base, options.recipe, options.run, arguments)
    command.check_parts(command.named(arguments), config.run)
    if options.show:
        return to_toml(config).rstrip()
    return describe(config) if options.dry_run else _closing_words(finetune(config))


def _help(config: FinetuneConfig) -> str:
    width = max(len(known.name) for members in FINETUNE_FAMILIES.values() for known in members)
    lines = []  # all indented, or the parser would join them
    for family, members in FINETUNE_FAMILIES.items():
        lines += [f"  {family}:", *(f"    {known.name:{width}}  {known.summary}" for known in members)]
    return (
        "Fine-tune a trained encoder on labeled images, and evaluate it on others.\n\n"
        "The mean of the patch tokens goes through a norm and a linear layer; layers learn the more slowly, the deeper "
        "they lie. Without --data, the images are the digits that come with scikit-learn.\n\n"
        f"Recipes (default: {DEFAULT_RECIPE}; the option defaults below are those of {config.recipe}):\n"
        + "\n".join(lines)
        + "\n\nExamples:\n"
        f"  {_PROGRAM} --backbone runs/demo\n"
        f"  {_PROGRAM} bim_vit_base --backbone runs/bim_vit_base --data imagenet --out runs/tuned\n"
        f"  {_PROGRAM} mae_vit_base --backbone mae_pretrain_vit_base.pth --data photos --held-out 0.1 --epochs 50\n"
        f"  {_PROGRAM} --backbone runs/demo --from-scratch --out runs/scratch  # what was pre-training worth?"
    )


def _closing_words(outcome: Finetuned) -> str:
    found, folder = outcome.held_out, outcome.folder
    number, by_timm = int(found.confusion.sum()), outcome.for_timm
    where = "for timm.create_model" if by_timm else "in our own layout, as timm has no such network"
    top5 = "" if found.top5 is None else f", top-5 {found.top5:.1%}"
    lines = [
        f"\nAccuracy on {number} held-out images of {len(outcome.classes)} classes: top-1 {found.top1:.1%}{top5}; "
        f"loss {found.loss:.3g}",
        f"\nWrote {folder.path}/",
        "  pictures/confusion.png       which classes are taken for which",
        "  pictures/errors.png          the most confident errors",
        "  pictures/curves.png          loss, accuracy and learning rate; memory.png: memory over time",
        "  metrics.jsonl, tensorboard/  every logged number",
        "  checkpoints/                 the last two and the best (state.json names it)",
        f"  exported/                    the classifier, {where}",
    ]
    if by_timm:
        load = f"{import_line('timm')}\nmodel = timm.create_model({f'local-dir:{folder.exported}'!r}, pretrained=True)"
    else:
        load = f"from bimkern.models.exported import load_classifier\nmodel = load_classifier({str(folder.exported)!r})"
    return "\n".join([*lines, "", "To load it:", indent(load, "  ")])


def script() -> None:
    """Run as the script `bimkern-finetune`, or by `python -m`."""
    with ending_at_once(native=is_launched()):
        main()


if __name__ == "__main__":
    script()

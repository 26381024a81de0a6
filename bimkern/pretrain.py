"""`python -m bimkern.pretrain [RECIPE] [options]`: pre-train an encoder from unlabelled images."""

import gc
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

import torch

from bimkern import command, optional
from bimkern.data.check import check, readable
from bimkern.data.demo import demo_images
from bimkern.data.formats import allow_pixels
from bimkern.data.loader import Loader, LoaderError, choose_loader
from bimkern.data.source import Listing, SourceError, image_folder
from bimkern.data.step_layout import StepLayout
from bimkern.models import attention
from bimkern.ops import BackendError
from bimkern.output import Warnings, printing, say
from bimkern.recipes import FAMILIES, RECIPES, SMALL_RECIPES, Recipe
from bimkern.train import network
from bimkern.train.checkpoint.store import CheckpointError
from bimkern.train.config.run import DTYPES, Config, ConfigError, RunConfig, resolve_device
from bimkern.train.config.serialize import to_json
from bimkern.train.memory import allocator
from bimkern.train.memory.budget import OutOfMemory, check_that_it_fits, halved
from bimkern.train.memory.estimate import live_activation_peak
from bimkern.train.optim import adapters
from bimkern.train.reporting.progress import checking
from bimkern.train.run_folder.dataset_manifest import RunImages, settle
from bimkern.train.run_folder.folder import RunFolder
from bimkern.train.signals import Stopped, Terminated, terminated_at_once
from bimkern.train.trainer import Diverged, Outcome, Starved, Trainer
from bimkern.units import human_bytes
from bimkern.watchdog import ending_at_once

logger = logging.getLogger("bimkern.train")

_PROGRAM = "python -m bimkern.pretrain"
_DEFAULT_RECIPE = "demo"
_FEW_STEPS = 100


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s %(message)s", handlers=[Warnings()])
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with an image goes to quarantine.jsonl
    try:
        with terminated_at_once():
            words = _run(arguments)
    except (ConfigError, SourceError, LoaderError, CheckpointError, BackendError, optional.Unusable) as error:
        command.end(_PROGRAM, str(error), exit_code=2)
    except (Diverged, Starved) as error:
        command.end(_PROGRAM, str(error), exit_code=1)
    except Stopped as stop:
        command.end(_PROGRAM, f"{stop}; the same command goes on from there", exit_code=stop.exit_code)
    except Terminated:
        command.end(_PROGRAM, "stopped by SIGTERM; the same command goes on", exit_code=128 + signal.SIGTERM)
    except KeyboardInterrupt:
        command.end(_PROGRAM, "interrupted; the same command goes on from what is saved", exit_code=130)
    except OSError as error:
        command.end(_PROGRAM, f"cannot go on ({error})", exit_code=1)
    with printing():
        print(words)


def _run(arguments: list[str]) -> str:
    """Do what the arguments say; return what is printed at the end."""
    recipe = command.take(arguments, RECIPES, "recipe", _DEFAULT_RECIPE)
    config = replace(recipe.config, run=_parse_options(recipe, arguments))
    _refuse_other_processes()
    allow_pixels(config.run.max_pixels)
    listings = _list_data(config.run.data)
    loader, why = _choose(config.run)
    if config.run.dry_run:
        return _describe(config, listings[0], why)
    check_that_it_fits(config, resolve_device(config.run.device))
    folder = RunFolder(config.run.out or Path("runs") / config.recipe)
    root = listings[0].root
    if root.resolve() in (folder.path.resolve(), *folder.path.resolve().parents):
        raise ConfigError(f"--out {folder.path} lies inside --data {root}: its pictures would be trained on")
    folder.open(config)
    images = _check_data(config, listings, folder)
    say(_describe_briefly(config, images, _skipped(images.listing), why))
    config, outcome = _train(config, images, loader, folder)
    return _closing_words(config, folder, outcome)


def _refuse_other_processes() -> None:
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise ConfigError(
            f"WORLD_SIZE={size}: a run is one process so far; start it without torchrun, or with --nproc-per-node 1"
        )


def _train(config: Config, images: RunImages, loader: Loader, folder: RunFolder) -> tuple[Config, Outcome]:
    """Train; where memory runs out, anew from the last checkpoint with half as many images at a time."""
    while True:
        try:
            return config, Trainer(config, images, loader, folder).train()
        except OutOfMemory as shortage:
            config = replace(config, run=halved(config.run))
            logger.warning("%s; going on with --micro-batch %d, the batch stays", shortage, config.run.micro_batch)
        gc.collect()  # the trainer and what its error held are gone only now
        loader, _ = _choose(config.run)


def _parse_options(recipe: Recipe, arguments: list[str]) -> RunConfig:
    """Parse options into a RunConfig whose defaults are the recipe's."""
    usage, run = f"{_PROGRAM} [RECIPE]", recipe.config.run
    try:
        options = command.parse(RunConfig, arguments, usage=usage, description=_help(recipe), default=run)
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
        "Pre-train a vision transformer by masked image modelling.\n\n"
        f"Recipes (default {_DEFAULT_RECIPE}; the options' defaults below are those of {recipe.name}):\n"
        + "\n".join(lines)
        + f"\n  The same on a tiny ViT, for tests:\n{small}\n\n"
        "Examples:\n"
        f"  {_PROGRAM}\n"
        f"  {_PROGRAM} bim_vit_base --data photos --batch-size 256 --out runs/photos\n"
        f"  {_PROGRAM} mae_vit_large --dry-run"
    )


def _list_data(folder: Path | None) -> list[Listing]:
    """Return the files to train on and, where there are any, others to judge and draw."""
    if folder is None:
        return list(demo_images())
    if folder == Path():
        raise ConfigError("--data is empty or the current folder; name the folder of images")
    return [image_folder(folder)]


def _check_data(config: Config, listings: list[Listing], folder: RunFolder) -> RunImages:
    """Decode every file once, and settle what the run trains on and is judged by."""
    workers = len(os.sched_getaffinity(0)) if config.run.workers is None else config.run.workers
    found = []
    for listing in listings:
        with checking() as progress:
            found.append(check(listing, workers=workers, progress=progress))
    ratio = config.run.max_bad_ratio
    images = settle(folder.path, listings[0], found[0], begun=folder.begun, max_bad_ratio=ratio)
    if len(listings) == 1:
        return images
    damaged = [file for file, result in found[1].items() if result.fault is not None]
    if damaged:
        raise SourceError(
            f"{listings[1].root / damaged[0]} is damaged; delete {listings[1].root.parent}: it is made anew"
        )
    return replace(images, judged=readable(listings[1], found[1]))


def _choose(run: RunConfig) -> tuple[Loader, str]:
    """Make sure that what the options name can be used here; return the loader and a line about it."""
    device = resolve_device(run.device)
    allocator.prepare(run.arena, device, compiled=run.compile)  # first: it may replace torch's allocator
    attention.choose(run.attention, device, DTYPES[run.precision], deterministic=run.deterministic)
    adapters.choose(run.optimizer, device)
    return choose_loader(run.loader, device, run.workers, dry_run=run.dry_run)


def _describe(config: Config, images: Listing, loader: str) -> str:
    run = config.run
    with torch.device("meta"):
        model = network.build(config)
    sizes = [sum(p.numel() for _, p in model.stage_parameters(k)) for k in range(model.num_stages)]
    table = config.step_layout(len(images))
    peaks = {live_activation_peak(config, segment): segment for segment in table.segments}
    largest = peaks[max(peaks)]
    facts = {
        "images": f"{len(images)} in {images.root}, not checked yet{_skipped(images)}",
        "device": str(resolve_device(run.device)),
        "loader": loader,
        "parameters": f"{sum(sizes) / 1e6:.2f} M ({', '.join(f'{size / 1e6:.2f}' for size in sizes)} M per block)",
        "activations": f"{human_bytes(max(peaks))} live at most, with {largest.micro_batch} images of "
        f"{largest.image_size} px at a time, decoded in slices: {run.slices}",
        "steps": _steps(config, table),
        "learning rate": f"{run.peak_lr:.3e} at its peak, = {run.base_lr:g} * {run.batch_size} / 256",
    }
    if config.phases:
        facts |= _phases(config, table, len(images))
    return "\n".join([json.dumps(to_json(config), indent=2), *(f"{name:13}  {fact}" for name, fact in facts.items())])


def _steps(config: Config, table: StepLayout) -> str:
    """Say how many steps there are, of how many images, and of which sizes where these change."""
    batches = ", then ".join(dict.fromkeys(str(segment.batch_size) for segment in table.segments))
    sizes = ", then ".join(dict.fromkeys(f"{phase.image_size} px" for phase in config.phases))
    return f"{table.num_steps} of {batches} images{' of ' if sizes else ''}{sizes}"


def _phases(config: Config, table: StepLayout, num_images: int) -> dict[str, str]:
    return {
        f"phase {i + 1}": f"{length} steps of {segment.batch_size} images of {segment.image_size} px, "
        f"{segment.micro_batch} at a time, from epoch {segment.first_image / num_images:g}, "
        f"learning rate {config.run.peak_lr_of(segment.batch_size):.3e} at its peak"
        for i, (segment, length) in enumerate(zip(table.segments, table.lengths(), strict=True))
    }


def _skipped(listing: Listing) -> str:
    if not listing.others:
        return ""
    return f"; {len(listing.others)} non-image files skipped ({listing.count_others()})"


def _describe_briefly(config: Config, run_images: RunImages, skipped: str, loader: str) -> str:
    run, images = config.run, run_images.images
    table = config.step_layout(len(images))
    few = f"; {table.num_steps} steps are too few to learn much" if table.num_steps < _FEW_STEPS else ""
    teacher = "" if run.teacher is None else f"\nalso learns the features of {run.teacher}"
    return (
        f"{config.recipe}: {len(images)} images from {images.root}{skipped}; steps: {_steps(config, table)}, "
        f"{run.precision} on {resolve_device(run.device)}, peak learning rate {run.peak_lr:.2e}{few}\n"
        f"loader: {loader}{teacher}"
    )


def _closing_words(config: Config, folder: RunFolder, outcome: Outcome) -> str:
    judged = "parts of the photographs kept out of training" if config.run.data is None else "other crops of the images"
    width = max(len(stage.name) for stage in outcome)
    notes = dict.fromkeys(stage.note for stage in outcome if stage.note)
    if config.schedule.per_group:
        notes["What was frozen before the end is judged as it was left."] = None
    return "\n".join(
        [
            f"\nMean squared error on what is hidden, {judged}:",
            *(
                f"  {stage.name:{width}}  {stage.error:#.3g}; {stage.baseline} would give {stage.baseline_error:#.3g}"
                for stage in outcome
            ),
            *(f"({note})" for note in notes),
            f"\nWrote {folder.path}/\n"
            "  pictures/reconstruction.png  what is hidden from each stage and what it predicts\n"
            "  pictures/curves.png, memory.png\n"
            "  metrics.jsonl, tensorboard/  every logged number\n"
            "  checkpoints/                 the last two and the best (state.json names it)\n"
            "  exported/                    the encoder up to each head, for timm\n\n"
            f"Next: look at {folder.pictures / 'reconstruction.png'}, or train on your own images:\n"
            f"  {_PROGRAM} bim_vit_base --data FOLDER --batch-size 256",
        ]
    )


if __name__ == "__main__":
    with ending_at_once():
        main()

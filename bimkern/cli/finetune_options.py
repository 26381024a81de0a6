"""Which config fine-tuning works with: a recipe or a file, and what its options change in that."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from bimkern.cli import command
from bimkern.cli.config_options import as_option, read_chosen, with_options
from bimkern.data.label_mixing import LabelMixing
from bimkern.recipes.find import find_finetune_config
from bimkern.train.config.finetuning import FinetuneConfig, FinetuneOptions
from bimkern.train.config.overrides import field, parse_settings

_PATHS = {  # of the fields that options are short for
    "image_size": "resized",
    "layer_decay": "layer_decay",
    "drop_path": "drop_path",
    "ema": "ema",
    "mixup": "mixing.mixup",
    "cutmix": "mixing.cutmix",
    "smoothing": "mixing.smoothing",
    "rand_augment": "augment.rand_augment",
    "erase": "augment.erase_prob",
    "crop_scale": "augment.scale",
    "warmup_epochs": "schedule.warmup_epochs",
    "weight_decay": "optim.weight_decay",
}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfigOptions:
    """Any field can be set, by --set; --show prints all. The options after it are short for fields."""

    config: Path | None = None
    """Config to use instead of a recipe: what --show printed (.toml), or the config.json of a run."""
    modules: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="import", metavar="SOURCE")] = ()
    """Python file or module to import first, for an encoder of your own."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """Set any field by its path: optim.betas=0.9,0.98, crop.ratio=1."""
    image_size: Annotated[str | None, tyro.conf.arg(metavar="SIDE|HxW|none")]
    """Side of the images in pixels, or height and width, as in 160x320: resized. none: as the recipe's encoder or the
    backbone has it."""
    layer_decay: float
    """Learning rate of a layer over that of the one above it: layer_decay."""
    drop_path: float
    """Share of the images that skip the branches of the last layer; in those before, fewer: drop_path."""
    ema: float | None
    """Decay, a step, of averaged weights, which are then evaluated and exported: ema."""
    mixup: float | None
    """Alpha of mixup, 0 for none: mixing.mixup. Needs timm, as do the four options after it."""
    cutmix: float | None
    """Alpha of CutMix, 0 for none: mixing.cutmix."""
    smoothing: float | None
    """Label smoothing: mixing.smoothing."""
    rand_augment: str | None
    """RandAugment in timm's notation, or none: augment.rand_augment."""
    erase: float
    """Share of the images of which a rectangle is erased: augment.erase_prob."""
    crop_scale: tuple[float, float]
    """Smallest and largest share of an image's area that a crop takes: augment.scale."""
    warmup_epochs: float | None
    """Epochs of linear warm-up: schedule.warmup_epochs."""
    weight_decay: float
    """Decoupled weight decay: optim.weight_decay."""

    @classmethod
    def of(cls, config: FinetuneConfig) -> "FinetuneConfigOptions":
        """Return the values that a config has."""
        return cls(**{name: as_option(field(config, path)) for name, path in _PATHS.items()})


def choose_config(arguments: list[str]) -> FinetuneConfig:
    """Take the name of a recipe off the arguments; return its config, or that of --config, or the demo's.

    Raises:
        ConfigError: there is none, or two are named.
    """
    return read_chosen(arguments, FinetuneConfig, find_finetune_config)


def change_config(
    config: FinetuneConfig, options: FinetuneConfigOptions, run: FinetuneOptions, arguments: Sequence[str]
) -> FinetuneConfig:
    """Return a config with what the arguments set: by --set, by the options that are short for fields, and in run.

    Raises:
        ConfigError: a field is set twice, or with_overrides refuses it.
    """
    settings, given = parse_settings(options.set), command.named(arguments)
    short = {name: {path: getattr(options, name)} for name, path in _PATHS.items() if name in given}
    mixes = any(path.startswith("mixing.") for changes in (settings, *short.values()) for path in changes)
    if config.mixing is None and mixes:
        config = replace(config, mixing=LabelMixing(mixup=0.0, cutmix=0.0, smoothing=0.0))  # only what is asked for
    return with_options(config, settings, short, run, arguments)

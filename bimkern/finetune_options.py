"""Which config fine-tuning works with: a recipe or a file, and what its options change in that."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from bimkern import command
from bimkern.errors import closest
from bimkern.recipes.find import import_module
from bimkern.recipes.finetuning import FINETUNE_RECIPES
from bimkern.train.config.file import read_config
from bimkern.train.config.finetuning import FinetuneConfig, FinetuneOptions
from bimkern.train.config.overrides import field, parse_settings, refuse_twice, with_overrides
from bimkern.train.config.run import ConfigError

DEFAULT_RECIPE = "demo"

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
    image_size: int | None
    """Side of the images in pixels: resized. none: as the recipe's encoder or the backbone has it."""
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
        return cls(**{name: field(config, path) for name, path in _PATHS.items()})


def choose_config(arguments: list[str]) -> FinetuneConfig:
    """Take the name of a recipe off the arguments; return its config, or that of --config, or the demo's.

    Raises:
        ConfigError: there is none, or two are named.
    """
    for source in command.values(arguments, "import"):
        import_module(source)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    files = command.values(arguments, "config")
    if files and name is not None:
        raise ConfigError(f"{name} and --config {files[0]} both name a config; give one of them")
    if files:
        return read_config(Path(files[0]), FinetuneConfig)
    name = name or DEFAULT_RECIPE
    if name not in FINETUNE_RECIPES:
        hint = "`python -m bimkern.finetune --help` lists all"
        raise ConfigError(f"unknown recipe {name!r}; {closest(name, FINETUNE_RECIPES, hint)}")
    return FINETUNE_RECIPES[name].config


def change_config(
    config: FinetuneConfig, options: FinetuneConfigOptions, run: FinetuneOptions, arguments: Sequence[str]
) -> FinetuneConfig:
    """Return a config with what the arguments set: by --set, by the options that are short for fields, and in run.

    Raises:
        ConfigError: a field is set twice, or with_overrides refuses it.
    """
    given = command.named(arguments)
    by_option: dict[str, tuple[str, Any]] = {
        f"run.{option.name}": (option.name, getattr(run, option.name)) for option in fields(run) if option.name in given
    }
    by_option |= {path: (name, getattr(options, name)) for name, path in _PATHS.items() if name in given}
    changes = refuse_twice(parse_settings(options.set), by_option)
    if config.mixing is None and any(path.startswith("mixing.") for path in changes):
        changes = {
            "mixing.mixup": 0.0,
            "mixing.cutmix": 0.0,
            "mixing.smoothing": 0.0,
        } | changes  # only what is asked for
    return with_overrides(config, changes)

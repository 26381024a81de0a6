"""Which config a command works with: a recipe or a file, and what its options change in that."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from bimkern.cli import command
from bimkern.image_size import ImageSize
from bimkern.mim.flow import Flow, Local
from bimkern.mim.stages import equal_stages
from bimkern.pieces import registered
from bimkern.recipes.find import find_config, import_module
from bimkern.train.config.file import read_config
from bimkern.train.config.overrides import field, parse_settings, refuse_twice, with_overrides
from bimkern.train.config.run import Config, ConfigError, TrainingConfig

C = TypeVar("C", bound=TrainingConfig)
DEFAULT_RECIPE = "demo"

_PATHS = {  # of the fields that options are short for
    "image_size": "method.encoder.image_size",
    "patch_size": "method.encoder.patch",
    "decoder_depth": "method.heads.depth",
    "warmup_epochs": "schedule.warmup_epochs",
    "weight_decay": "optim.weight_decay",
    "clip": "optim.clip",
    "crop_scale": "augment.scale",
    "mean": "method.mean",
    "std": "method.std",
}


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """Any field can be set, by --set; --show prints all. The options after it are short for fields."""

    config: Path | None = None
    """Config to use instead of a recipe: what --show printed (.toml), or the config.json of a run."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Backbone of timm to pre-train, by its name there, for the recipes fastmim and fastmim_p."""
    modules: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="import", metavar="SOURCE")] = ()
    """Python file or module to import first, for your own pieces in a config file or a run."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """Set any field by its path: method.masker.ratios=0.6, optim.betas=0.9,0.98, schedule.type=MultiStep."""
    image_size: Annotated[str, tyro.conf.arg(metavar="SIDE|HxW")]
    """Side of the images in pixels, or their height and width, as in 160x320: method.encoder.image_size."""
    patch_size: int | None
    """Side of a patch in pixels: method.encoder.patch."""
    mask_ratio: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT...")]
    """Share of the patches that is masked, or one for every stage: method.masker.ratios, or ratio."""
    blocks: int
    """Stages of BIM ("blocks" in the paper), all equal: method.taps."""
    decoder_depth: int | None
    """Layers of every decoder: method.heads.depth."""
    warmup_epochs: float | None
    """Epochs of linear warm-up, in place of a share of the run: schedule.warmup_epochs."""
    weight_decay: float
    """Decoupled weight decay: optim.weight_decay."""
    clip: float | None
    """Largest L2 norm of the gradients: optim.clip."""
    crop_scale: tuple[float, float]
    """Smallest and largest share of an image's area that a crop takes: augment.scale."""
    mean: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT...")]
    """Mean of every channel in [0, 1], to normalize images: method.mean."""
    std: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT...")]
    """Standard deviation of every channel: method.std."""

    @classmethod
    def of(cls, config: Config) -> "ConfigOptions":
        """Return the values that a config has."""
        masker = config.method.masker
        ratio = getattr(masker, "ratio", None)
        return cls(
            mask_ratio=getattr(masker, "ratios", () if ratio is None else (ratio,)),
            blocks=len(config.method.taps),
            **{name: as_option(field(config, path)) for name, path in _PATHS.items()},
        )


def as_option(value: Any) -> Any:
    """Return the value of a field as an option has it: sizes of images as text."""
    return str(value) if isinstance(value, ImageSize) else value


def choose_config(arguments: list[str]) -> Config:
    """Take the name of a recipe off the arguments; return its config, or that of --config, or the demo's.

    Raises:
        ConfigError: there is none, or two are named.
    """
    files, backbones = command.values(arguments, "config"), command.values(arguments, "backbone")
    if files and backbones:
        raise ConfigError(f"--backbone {backbones[0]} and --config {files[0]} both name an encoder; give one of them")
    return read_chosen(arguments, Config, lambda name: find_config(name, *backbones[:1]))


def read_chosen(arguments: list[str], kind: type[C], find: Callable[[str], C]) -> C:
    """Take the name of a recipe off the arguments and find its config; or read that of --config, or find the demo's.

    Raises:
        ConfigError: there is none, or two are named.
    """
    for source in command.values(arguments, "import"):
        import_module(source)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    files = command.values(arguments, "config")
    if not files:
        return find(name or DEFAULT_RECIPE)
    if name is not None:
        raise ConfigError(f"{name} and --config {files[0]} both name a config; give one of them")
    return read_config(Path(files[0]), kind)


def change_config(config: Config, options: ConfigOptions, run: Any, arguments: Sequence[str]) -> Config:
    """Return a config with what the arguments set: by --set, by the options that are short for fields, and in run.

    Args:
        config: as choose_config returned it.
        options: parsed from the arguments, likewise run.
        run: a dataclass, some of whose fields are those of a RunConfig.
        arguments: tell what was given from defaults.

    Raises:
        ConfigError: a field is set twice, or with_overrides refuses it.
    """
    settings, given = parse_settings(options.set), command.named(arguments)
    names = [option.name for option in fields(options) if option.name in given]
    short = {name: _short_for(name, options, config, settings) for name in names}
    return with_options(config, settings, short, run, arguments)


def with_options(
    config: C, settings: Mapping[str, Any], short: Mapping[str, Mapping[str, Any]], run: Any, arguments: Sequence[str]
) -> C:
    """Return a config with other values in some fields.

    Args:
        config: what is changed.
        settings: of --set, by the paths of fields.
        short: what each option that is short for fields sets, by their paths.
        run: options, some of which are fields of the config's run.
        arguments: tell which of these were given.

    Raises:
        ConfigError: a field is set twice, or with_overrides refuses it.
    """
    shared = {option.name for option in fields(run)} & {option.name for option in fields(config.run)}
    by_option = {f"run.{name}": (name, getattr(run, name)) for name in shared & command.named(arguments)}
    by_option |= {path: (name, value) for name, changes in short.items() for path, value in changes.items()}
    return with_overrides(config, refuse_twice(settings, by_option))


def _short_for(name: str, options: ConfigOptions, config: Config, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that an option sets, by path."""
    value, method = getattr(options, name), config.method
    if name == "warmup_epochs" and hasattr(config.schedule, "warmup"):
        return {"schedule.warmup": 0.0, "schedule.warmup_epochs": value}
    if name in _PATHS:
        return {_PATHS[name]: value}
    if name == "mask_ratio":
        if hasattr(method.masker, "ratios"):
            return {"method.masker.ratios": value}
        if len(value) == 1:
            return {"method.masker.ratio": value[0]}
        masker = type(method.masker).__name__
        raise ConfigError(f"--mask-ratio: {masker} masks the same for every stage; give one value, got {len(value)}")
    if name == "blocks":
        flow = registered(Flow).get(str(settings.get("method.flow.type")), type(method.flow))
        if not issubclass(flow, Local):
            needed = "stages that learn independently (method.flow.type=Local)"
            raise ConfigError(f"--blocks is for {needed}, got {flow.__name__}")
        depth = method.encoder.depth
        with suppress(ValueError):  # which is refused where it is set
            depth = int(settings.get("method.encoder.depth", depth))
        try:
            return {"method.taps": equal_stages(depth, value)}
        except ValueError as error:
            raise ConfigError(f"--blocks: the {depth} layers cannot be cut into {value} equal stages") from error
    return {}

"""--normalize: images are normalized by the mean and standard deviation of ImageNet, of the data, or of a file."""

import json
from dataclasses import replace
from pathlib import Path

from bimkern.data.listing import Listing
from bimkern.data.statistics import measure
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD
from bimkern.train.config.run import Config, ConfigError


def normalized(config: Config, listing: Listing, measured: Path, *, workers: int) -> Config:
    """Return a config whose method has the mean and standard deviation that --normalize names.

    Args:
        config: of the run.
        listing: its images, which `dataset` measures.
        measured: file of the run with what was measured when it began; it may not exist yet.
        workers: processes that measure.

    Raises:
        ConfigError: they cannot be read, or are not those of as many channels.
        SourceError: the images cannot be measured.
    """
    name = config.run.normalize
    if name is None:
        return config
    mean, std = _values(name, listing, measured, workers)
    try:
        return replace(config, method=replace(config.method, mean=mean, std=std))
    except ValueError as error:
        raise ConfigError(f"--normalize {name}: {error}") from error


def _values(name: str, listing: Listing, measured: Path, workers: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if name == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    if name == "dataset" and not measured.is_file():
        statistics = measure(listing, workers=workers)
        return statistics.mean, statistics.std
    return _read(measured if name == "dataset" else Path(name))


def _read(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    expected = '{"mean": [0.5, ...], "std": [0.2, ...]}'
    try:
        content = json.loads(path.read_text())
        mean, std = (tuple(float(value) for value in content[name]) for name in ("mean", "std"))
    except OSError as error:
        raise ConfigError(
            f"--normalize must be imagenet, dataset, or a JSON file, got {path} ({error.strerror})"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"--normalize {path}: expected a JSON object {expected}") from error
    return mean, std

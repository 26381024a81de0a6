"""Folders for timm.create_model("local-dir:..."): an encoder and its last norm, without a classifier.

Without a config timm would take its defaults: images resized to 224 px and normalized by 0.5.
"""

from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

from bimkern.exporters.trained import POOLING, Preprocessing, Trained
from bimkern.exporters.whole_file import write_json, write_weights
from bimkern.models.encoder import WEIGHTS_FILE, Layout

_CROP = 224 / 256  # side of the central crop over the short side of the resized image; MAE's evaluation


def write_timm(path: Path, trained: Trained, depth: int) -> None:
    """Write such a folder; `random` in its config.json lists the parts with random weights, which timm ignores.

    Raises:
        ConfigError: timm has no such encoder, or the folder cannot be written.
    """
    layout, encoder = trained.layout(depth, "timm", "timm"), trained.config.method.encoder
    weights = trained.backbone(depth, layout)
    write_weights(path / WEIGHTS_FILE, weights, trained.metadata(depth))
    config = describe_network(layout, encoder.channels, trained.preprocessing)
    write_json(path / "config.json", config | {"random": _random_parts(layout, weights)})


def _random_parts(layout: Layout, weights: Iterable[str]) -> list[str]:
    """Name the largest modules, or else weights, that are random as a whole."""
    trained = {prefix for name in weights if name not in layout.random for prefix in _prefixes(name)}
    parts = (next(prefix for prefix in _prefixes(name) if prefix not in trained) for name in layout.random)
    return list(dict.fromkeys(parts))


def _prefixes(name: str) -> Iterable[str]:
    return accumulate(name.split("."), "{}.{}".format)


def describe_network(
    layout: Layout, channels: int, images: Preprocessing, *, num_classes: int = 0, crop_ratio: float = _CROP
) -> dict[str, Any]:
    """Describe a network as timm does in the config.json of a model folder: what to build, what to feed it."""
    settings = layout.settings
    return {
        "architecture": settings["architecture"],
        "num_classes": num_classes,
        "num_features": settings["num_features"],
        "global_pool": POOLING,
        "model_args": {**settings["model_args"], "num_classes": num_classes, "global_pool": POOLING},
        "pretrained_cfg": {
            "input_size": [channels, *images.image_size],
            "fixed_input_size": "img_size" in settings["model_args"],  # which timm then sets
            "interpolation": images.interpolation,
            "crop_pct": crop_ratio,
            "crop_mode": "center",
            "mean": images.mean,
            "std": images.std,
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": settings["first_conv"],
            "classifier": settings["classifier"],
        },
    }

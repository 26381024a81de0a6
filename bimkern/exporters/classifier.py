"""A fine-tuned classifier as a folder for timm.create_model("local-dir:..."), or under our own names."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bimkern.exporters.timm import describe_network
from bimkern.exporters.trained import POOLING, Preprocessing, below
from bimkern.exporters.whole_file import write_json, write_weights
from bimkern.models.classifier import Classifier
from bimkern.models.encoder import WEIGHTS_FILE, EncoderConfig, Layout
from bimkern.pieces import to_json
from bimkern.train.config.finetuning import FinetuneConfig


class _Names(NamedTuple):
    """What another program calls the parts of a classifier."""

    norm: str
    head: str
    settings: dict[str, Any]


def write_classifier(
    path: Path, config: FinetuneConfig, model: Classifier, classes: tuple[str, ...], step: int
) -> None:
    """Write weights and a config.json, for timm where it has such a network.

    Raises:
        ConfigError: the folder cannot be written.
    """
    encoder: EncoderConfig = model.encoder.config
    assert config.mean is not None
    assert config.std is not None
    images = Preprocessing(
        image_size=encoder.image_size, interpolation=config.crop.interpolation, mean=config.mean, std=config.std
    )
    state = model.state_dict()
    metadata = {
        "format": "pt",
        "recipe": config.recipe,
        "step": str(step),
        "encoder": json.dumps(to_json(encoder)),
        "interpolation": images.interpolation,
        "mean": json.dumps(images.mean),
        "std": json.dumps(images.std),
        "global_pool": POOLING,
        "classes": json.dumps(classes),
    }
    layout, names = encoder.layout("timm"), None
    if layout is not None:
        names = _timm_names(layout, norm_first=config.norm_first)
    if layout is None or names is None:
        write_weights(path / WEIGHTS_FILE, state, metadata)
        own = {"encoder": to_json(encoder), "norm_first": config.norm_first, "label_names": list(classes)}
        write_json(path / "config.json", own)
        return
    weights: dict[str, Tensor] = {layout.name(name): tensor for name, tensor in below("encoder", state)}
    weights |= {f"{names.norm}.{name}": tensor for name, tensor in below("norm", state)}
    weights |= {f"{names.head}.{name}": tensor for name, tensor in below("head", state)}
    write_weights(path / WEIGHTS_FILE, weights, metadata)
    described = describe_network(
        layout, encoder.channels, images, num_classes=len(classes), crop_ratio=config.crop.ratio
    )
    described["model_args"] |= names.settings
    write_json(path / "config.json", described | {"label_names": list(classes)})


def _timm_names(layout: Layout, *, norm_first: bool) -> _Names | None:
    """Return timm's names; None where its network normalizes at another place."""
    head: str = layout.settings["classifier"]
    if "fc_norm" in layout.settings["model_args"]:  # timm's ViT can do both
        return _Names("norm", head, {"fc_norm": False}) if norm_first else _Names("fc_norm", head, {"fc_norm": True})
    return _Names("norm", head, {}) if norm_first and layout.norm == "norm." else None

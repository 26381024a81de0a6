"""A fine-tuned classifier as a folder for timm.create_model("local-dir:..."), or under our own names."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bimkern.exporters.timm import describe_network
from bimkern.exporters.trained import POOLING, Preprocessing, below
from bimkern.exporters.whole_file import write_json, write_weights
from bimkern.models.classifier import Classifier
from bimkern.models.encoder import WEIGHTS_FILE, EncoderConfig
from bimkern.pieces import to_json
from bimkern.train.config.finetuning import FinetuneConfig


class TimmNames(NamedTuple):
    """What timm calls the parts of a classifier."""

    norm: str
    head: str
    settings: dict[str, Any]  # of its network, that differ


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
    layout, names = encoder.layout("timm"), names_in_timm(model)
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


def names_in_timm(model: Classifier) -> TimmNames | None:
    """Return timm's names; None where it has no such network, or one that normalizes at another place."""
    encoder: EncoderConfig = model.encoder.config
    layout = encoder.layout("timm")
    if layout is None:
        return None
    head: str = layout.settings["classifier"]
    if "fc_norm" in layout.settings["model_args"]:  # timm's ViT can do both
        norm = "norm" if model.norm_first else "fc_norm"
        return TimmNames(norm, head, {"fc_norm": not model.norm_first})
    return TimmNames("norm", head, {}) if model.norm_first and layout.norm == "norm." else None

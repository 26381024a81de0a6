"""A fine-tuned classifier as a folder for timm.create_model("local-dir:..."), or under our own names."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bimkern.exporters.timm import describe_network
from bimkern.exporters.trained import POOLING, Preprocessing, below
from bimkern.exporters.whole_file import write_json, write_weights
from bimkern.models.classifier import Classifier
from bimkern.models.encoder import OWN_LAYOUT, WEIGHTS_FILE, EncoderConfig, Layout
from bimkern.pieces import to_json
from bimkern.train.config.finetuning import FinetuneConfig


class TimmNames(NamedTuple):
    """What the parts of a classifier are called in a file for timm."""

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
        image_size=encoder.image_size,
        interpolation=config.crop.interpolation,
        mean=config.mean,
        std=config.std,
        alpha=config.alpha,
        range=config.run.range,
    )
    state = model.state_dict()
    metadata = {
        "format": "pt",
        "recipe": config.recipe,
        "step": str(step),
        "encoder": json.dumps(to_json(encoder)),
        **images.metadata(),
        "global_pool": POOLING,
        "classes": json.dumps(classes),
    }
    layout, names = encoder.layout("timm"), names_in_timm(model)
    if layout is None or names is None:
        write_weights(path / WEIGHTS_FILE, _named(state, OWN_LAYOUT, _own_names(model)), metadata)
        own = {"encoder": to_json(encoder), "norm_first": config.norm_first, "label_names": list(classes)}
        write_json(path / "config.json", own)
        return
    write_weights(path / WEIGHTS_FILE, _named(state, layout, names), metadata)
    described = describe_network(
        layout, encoder.channels, images, num_classes=len(classes), crop_ratio=config.crop.ratio
    )
    described["model_args"] |= names.settings
    write_json(path / "config.json", described | {"label_names": list(classes)})


def _named(state: dict[str, Tensor], layout: Layout, names: TimmNames) -> dict[str, Tensor]:
    """Name all weights of a classifier as a backbone of the same layout does, which can be read out of them."""
    weights = {layout.name(name): tensor for name, tensor in below("encoder", state)}
    weights |= {f"{names.norm}.{name}": tensor for name, tensor in below("norm", state)}
    weights |= {f"{names.head}.{name}": tensor for name, tensor in below("head", state)}
    assert len(weights) == len(state), "an encoder has a part of the name of a classifier's"
    return weights


def _own_names(model: Classifier) -> TimmNames:
    """Return the names where timm has none: its own of a ViT."""
    return TimmNames("norm" if model.norm_first else "fc_norm", "head", {})


def names_in_timm(model: Classifier) -> TimmNames | None:
    """Return timm's names; None where it has no such network, or one that normalizes at another place."""
    encoder: EncoderConfig = model.encoder.config
    layout = encoder.layout("timm")
    if layout is None:
        return None
    head: str = layout.settings["classifier"]
    if "fc_norm" in layout.settings["model_args"]:  # timm's ViT can do both
        return TimmNames(_own_names(model).norm, head, {"fc_norm": not model.norm_first})
    return TimmNames("norm", head, {}) if model.norm_first and layout.norm == "norm." else None

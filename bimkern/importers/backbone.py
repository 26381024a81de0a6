"""The encoder that fine-tuning begins with: which it is, and its weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bimkern.data.decoding import RGB
from bimkern.errors import BimkernError
from bimkern.importers.initialize import InitialWeights, Network, fit, summarize
from bimkern.importers.weights_file import SavedWeights, WeightsError, read_weights
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD
from bimkern.models.classifier import Classifier
from bimkern.train.config.finetuning import FinetuneConfig
from bimkern.train.config.run import ConfigError
from bimkern.train.network import build_classifier

_NORM = "heads.0.in_norm."  # the last norm of an encoder, which its heads begin with


def read_pretrained(config: FinetuneConfig) -> tuple[FinetuneConfig, InitialWeights]:
    """Read the weights that --backbone names, and what a config leaves to them.

    The last norm is taken where the config normalizes before the mean, and left there otherwise.

    Returns:
        The config, which knows its encoder and how images are normalized; and weights by the names of a Classifier.

    Raises:
        ConfigError: there are no weights, or their encoder is another; the message names what differs. Or the encoder
            would ignore an option.
    """
    path = config.run.backbone
    if path is None:
        raise ConfigError("--backbone is missing; name a pre-training run, or weights to begin with")
    try:
        saved = read_weights(path)
        config = _described(config, saved, path)
    except BimkernError as error:
        raise ConfigError(f"--backbone {error}") from error
    with torch.device("meta"):
        model = build_classifier(replace(config, num_classes=config.num_classes or 1))
    try:
        return config, _fitted(config, model, saved, path)
    except BimkernError as error:
        raise ConfigError(f"--backbone {error}") from error


def _described(config: FinetuneConfig, saved: SavedWeights, path: Path) -> FinetuneConfig:
    encoder, images = config.encoder or saved.encoder, saved.images
    if encoder is None:
        raise WeightsError(
            f"{path}: it does not say which encoder it holds, and {config.recipe} takes any; choose a recipe of that "
            f"encoder"
        )
    if config.resized is not None:
        try:
            encoder = encoder.resized(config.resized)
        except ValueError as error:
            raise WeightsError(f"{path}: resized: {error}") from error
    known = saved.statistics or (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = config.mean or known[0], config.std or known[1]
    if not len(mean) == len(std) == encoder.channels:
        raise WeightsError(
            f"{path}: mean and std must hold a value for each of the encoder's {encoder.channels} channels, got "
            f"{mean} and {std}; set both"
        )
    decoding = RGB if images is None else images
    run = replace(config.run, alpha=config.run.alpha or decoding.alpha, range=config.run.range or decoding.range)
    return replace(config, encoder=encoder, mean=mean, std=std, run=run)


def _fitted(config: FinetuneConfig, model: Classifier, saved: SavedWeights, path: Path) -> InitialWeights:
    encoder = config.known_encoder
    with torch.device("meta"):
        module: Any = encoder.module(encoder)
    state = {f"encoder.{name}": tensor for name, tensor in module.state_dict().items()}
    if config.norm_first:
        state |= {f"{_NORM}{name}": tensor for name, tensor in model.norm.state_dict().items()}
    found = fit(Network(module, state, taps=(encoder.depth - 1,)), saved, path)
    tensors = {_name(name): tensor for name, tensor in found.tensors.items()}
    if config.norm_first and "norm.weight" not in tensors:
        raise WeightsError(f"{path}: it lacks the encoder's last norm, which norm_first takes; set norm_first=false")
    report: Mapping[str, Any] = {
        **found.report,
        "taken": {_name(name): theirs for name, theirs in found.report["taken"].items()},
        "random": [name for name in model.state_dict() if name not in tensors],
    }
    return InitialWeights(tensors, found.sha256, report, summarize(report), found.statistics)


def _name(name: str) -> str:
    return f"norm.{name.removeprefix(_NORM)}" if name.startswith(_NORM) else name

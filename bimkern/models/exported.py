"""What was exported, read back: a backbone in the format timm or bimkern, or a classifier, a folder or its file."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from bimkern import pieces
from bimkern.errors import BimkernError
from bimkern.models import cmt, swin, timm_backbone, vit  # noqa: F401  # these register the built-in encoders
from bimkern.models.classifier import Classifier
from bimkern.models.encoder import WEIGHTS_FILE, EncoderConfig
from bimkern.models.normalization import Statistics, said_statistics


class BackboneError(BimkernError, ValueError):
    """A file holds no encoder; the message names it and says why."""


def weights_file(path: Path) -> Path:
    """Return the file that holds the weights of a backbone."""
    return path / WEIGHTS_FILE if path.is_dir() else path


def read_encoder_config(path: Path) -> EncoderConfig:
    """Read which encoder a backbone says it holds.

    Raises:
        BackboneError: the file cannot be read, or does not say it.
    """
    metadata = _metadata(path)
    if "encoder" not in metadata:
        remedy = "python -m bimkern.export writes files that do"
        raise BackboneError(f"{path}: it does not say which encoder it holds; {remedy}")
    try:
        config: EncoderConfig = pieces.from_json(json.loads(metadata["encoder"]), EncoderConfig, "encoder")
    except ValueError as error:
        raise BackboneError(f"{path}: its description is wrong ({error})") from error
    return config


def read_statistics(path: Path) -> Statistics | None:
    """Read by which mean and std a backbone says that its images were normalized; None where it does not say it.

    Raises:
        BackboneError: the file cannot be read, or says no such numbers.
    """
    metadata = _metadata(path)
    if not {"mean", "std"} <= metadata.keys():
        return None
    channels = read_encoder_config(path).channels
    try:
        return said_statistics(metadata, channels)
    except ValueError as error:
        raise BackboneError(f"{path}: {error}") from error


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(weights_file(path), framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BackboneError(f"{path}: it cannot be read ({error})") from error


def load_encoder(path: Path | str) -> Any:
    """Build the encoder of a backbone, an nn.Module that follows Encoder, on the CPU.

    The module of an encoder of your own must have been imported.

    Raises:
        BackboneError: the file cannot be read, or is no such backbone.
    """
    path = Path(path)
    config = read_encoder_config(path)
    try:
        return config.load(load_file(weights_file(path)))
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise BackboneError(f"{path}: it is no such backbone ({' '.join(str(error).split())})") from error


def load_classifier(path: Path | str) -> Classifier:
    """Build the classifier that a fine-tuning run exported, on the CPU, in evaluation mode.

    It takes images [B, C, H, W], uint8 or normalized, and returns logits [B, K] float32; the classes are in config.json
    under label_names. The module of an encoder of your own must have been imported.

    Raises:
        BackboneError: the file cannot be read, or holds no classifier.
    """
    path = Path(path)
    config, encoder, statistics = read_encoder_config(path), load_encoder(path), read_statistics(path)
    with safe_open(weights_file(path), framework="pt") as file:
        said, names = file.metadata(), set(file.keys())
        if "classes" not in said or statistics is None:
            raise BackboneError(f"{path}: it holds no classifier; give what is in exported/ of a fine-tuning run")
        norm = "fc_norm" if "fc_norm.weight" in names else "norm"  # the first comes behind the mean
        parts = {"norm": norm, "head": "head" if "head.weight" in names else "head.fc"}
        mean, std = statistics
        num_classes = len(json.loads(said["classes"]))
        model = Classifier(config, num_classes, norm_first=norm == "norm", mean=mean, std=std)
        for part, name in parts.items():
            module = model.get_submodule(part)
            module.load_state_dict({own: file.get_tensor(f"{name}.{own}") for own in module.state_dict()})
    model.encoder = encoder
    return model.eval()

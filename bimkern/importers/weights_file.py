"""Weights in a file or folder, as tensors by name; nothing that a file holds is executed."""

import argparse
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bimkern import optional
from bimkern.errors import BimkernError
from bimkern.exporters.trained import Preprocessing, read_trained
from bimkern.files.utf8 import WHY_NOT, is_utf8
from bimkern.models.encoder import WEIGHTS_FILE, EncoderConfig
from bimkern.models.exported import read_encoder_config
from bimkern.models.normalization import Statistics, checked

_FILES = (WEIGHTS_FILE, "pytorch_model.bin")  # in a folder, the first that there is
_PROCESSOR_FILE = "preprocessor_config.json"
_WRAPPERS = ("model", "state_dict")  # keys that training programs save the weights under
_PREFIXES = ("module.", "_orig_mod.")  # of a network that was wrapped for several processes, or compiled


class WeightsError(BimkernError, ValueError):
    """A file holds no weights; the message names it and says why."""


@dataclass(frozen=True)
class SavedWeights:
    """What was found: tensors under the names of the program that wrote them."""

    tensors: Mapping[str, Tensor]
    encoder: EncoderConfig | None = None  # known where we wrote the file
    taps: tuple[int, ...] | None = None  # of the run that saved them, if it is known
    settings: Mapping[str, Any] = field(default_factory=dict)  # config.json of another program's folder
    processor: Mapping[str, Any] = field(default_factory=dict)  # preprocessor_config.json, of transformers' folders
    images: Preprocessing | None = None  # known where we wrote the file

    @property
    def statistics(self) -> Statistics | None:
        """Mean and std by which images were normalized in training, also as timm or transformers says it of a folder.

        Raises:
            WeightsError: the file that says it has others than numbers to normalize by.
        """
        if self.images is not None:
            return self.images.mean, self.images.std
        timm = self.settings.get("pretrained_cfg", self.settings)
        return _said(timm, "", "config.json") or _of_unit_range(self.processor)


def _said(said: Any, prefix: str, file: str) -> Statistics | None:
    try:
        given = said[f"{prefix}mean"], said[f"{prefix}std"]
        mean, std = (tuple(map(float, values)) for values in given)
    except (KeyError, TypeError, ValueError):  # it is another program's
        return None
    if not len(mean) == len(std) > 0 or any(isinstance(values, str) for values in given):
        return None
    try:
        return checked((mean, std))
    except ValueError as error:
        raise WeightsError(f"{file} beside the weights: {error}") from error


def _of_unit_range(processor: Mapping[str, Any]) -> Statistics | None:
    """Return what an image processor of transformers says if its mean and std are of values in [0, 1], as ours."""
    scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    rescales = isinstance(scale, float) and math.isclose(scale, 1 / 255, rel_tol=1e-3)
    if not rescales or not processor.get("do_normalize", True):
        return None
    found = _said(processor, "image_", _PROCESSOR_FILE)
    return found if found is not None and max(found[0]) <= 1 else None


def is_run(path: Path) -> bool:
    """Return whether a folder is that of a run, or a checkpoint."""
    return (path / "checkpoints").is_dir() or (path / "manifest.json").is_file()


def read_weights(path: Path) -> SavedWeights:
    """Read a run folder, a checkpoint, a folder with weights, or a file of weights.

    Raises:
        WeightsError, BackboneError, ConfigError, CheckpointError: there are no weights, or they cannot be read.
    """
    if is_run(path):
        _, trained = read_trained(path)
        method = trained.config.method
        return SavedWeights(trained.weights, method.encoder, method.taps, images=trained.preprocessing)
    file = path
    if path.is_dir():
        files = [path / name for name in _FILES if (path / name).is_file()]
        if not files:
            raise WeightsError(f"{path} holds neither a run nor {' or '.join(_FILES)}")
        file = files[0]
    try:
        with file.open("rb") as opened:
            head = opened.read(512)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read ({error.strerror})") from error
    _refuse_other_content(file, head)
    if head.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle, of torch.save
        return SavedWeights(_unpacked(file, _load(file)), **_beside(file))
    tensors, metadata = _load_safetensors(file)
    if "encoder" not in metadata:
        return SavedWeights(tensors, **_beside(file))
    encoder = read_encoder_config(file)
    try:
        images = Preprocessing.said(metadata, encoder)
    except KeyError:  # of an older version
        images = None
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{file}: {error}") from error
    return SavedWeights(tensors, encoder, images=images, **_beside(file))


def _refuse_other_content(file: Path, head: bytes) -> None:
    start = head.lstrip().lower()
    if not head:
        raise WeightsError(f"{file} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{file} is a Git LFS pointer in place of the weights; git lfs pull fetches them")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{file} is a web page in place of the weights; download the file itself")


def _load_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not is_utf8(file):
        raise WeightsError(f"{file} cannot be read: {WHY_NOT}")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file} is neither safetensors nor a file of torch.save ({error})") from error


def _load(file: Path) -> Any:
    try:
        # A Namespace only holds values; training programs save their arguments as one, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise WeightsError(f"{file} cannot be read ({optional.first_line(error)})") from error
        raise WeightsError(
            f"{file} holds {refused[1].rstrip('.')}, which only code that runs on loading can restore; save the "
            f"state_dict of the network alone"
        ) from error


def _unpacked(file: Path, loaded: Any) -> dict[str, Tensor]:
    """Return the tensors of what torch.save wrote: a state dict, or a training state around one."""
    keys = ", ".join(map(str, list(loaded)[:5])) if isinstance(loaded, Mapping) else type(loaded).__name__
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    found = loaded if isinstance(loaded, Mapping) else {}
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{file} holds no state dict, but {keys or 'nothing'}")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _beside(file: Path) -> dict[str, Any]:
    """Read what other programs write beside a file of weights."""
    return {"settings": _json(file.parent / "config.json"), "processor": _json(file.parent / _PROCESSOR_FILE)}


def _json(file: Path) -> Mapping[str, Any]:
    """Read a JSON object; an empty one if there is none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""A trained encoder whose features another one learns to predict.

Shapes: B images, C channels, H W pixels, N tokens, D width of the teacher.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bimkern.errors import BimkernError
from bimkern.models.encoder import EncoderConfig, WholeImages
from bimkern.models.exported import BackboneError, load_encoder, read_statistics, weights_file
from bimkern.models.normalization import Statistics


class TeacherError(BimkernError, ValueError):
    """An encoder cannot teach a method, or is missing; the message says why."""


class Teacher:
    """An encoder that is read, never trained: not a module, so that no optimizer or checkpoint sees it."""

    def __init__(self, encoder: Any, sha256: str = "", statistics: Statistics | None = None) -> None:
        """Take an encoder.

        Args:
            encoder: trained.
            sha256: of the file that it comes from.
            statistics: mean and std by which its images were normalized, if that is known.
        """
        self.sha256 = sha256
        self._statistics = None if statistics is None else tuple(map(torch.tensor, statistics))
        self.encoder = encoder.eval().requires_grad_(False)

    @property
    def config(self) -> EncoderConfig:
        config: EncoderConfig = self.encoder.config
        return config

    @torch.no_grad()
    def features(self, images: Tensor, layers: Sequence[int], mean: Tensor, std: Tensor) -> list[Tensor]:
        """Return the tokens after some layers, 0-based, of whole images, each of mean 0 and variance 1.

        Args:
            images: [B, C, H, W] uint8, of any size that the patches divide: positions are interpolated.
            layers: of the teacher.
            mean, std: [C], as for Encoder.embed, for a teacher of which it is not known how it was trained.

        Returns:
            [B, N, D] for each.
        """
        if next(self.encoder.parameters()).device != images.device:
            self.encoder.to(images.device)
        if self._statistics is not None:
            self._statistics = tuple(values.to(mean) for values in self._statistics)
            mean, std = self._statistics
        view = WholeImages(self.config.level(0).grid(*images.shape[2:]))
        tokens = self.encoder.embed(images, mean, std)
        found = {}
        for layer in range(max(layers) + 1):
            tokens = self.encoder.run_layer(layer, tokens, view)
            if layer in layers:
                patches = tokens[:, self.config.num_prefix :]
                found[layer] = F.layer_norm(patches, patches.shape[-1:])
        return [found[layer] for layer in layers]


def load_teacher(path: Path) -> Teacher:
    """Read a backbone that `bimkern.export` wrote in the format timm or bimkern, a folder or the file in it.

    Raises:
        BackboneError: the file cannot be read, or is no such backbone.
    """
    encoder, statistics = load_encoder(path), read_statistics(path)
    try:
        with weights_file(path).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackboneError(f"{path}: it cannot be read ({error})") from error
    return Teacher(encoder, sha256, statistics)

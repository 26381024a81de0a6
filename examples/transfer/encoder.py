"""The trained encoder of a run or an export, ready to be trained further inside another network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bimkern.evaluate.backbone import Backbone, read_backbone
from bimkern.models.pyramid import SwinPyramid, ViTPyramid
from examples.transfer.errors import TransferError

Pyramid = ViTPyramid | SwinPyramid
_CHANNELS = 3


def read_encoder(path: Path, *, scratch: bool = False) -> Backbone:
    """Read an encoder with trainable weights; from scratch, with those of a new one instead.

    Raises:
        BimkernError: there is none, or not of RGB.
    """
    backbone = read_backbone(path)
    if backbone.config.channels != _CHANNELS:
        raise TransferError(
            f"{path}: images must have {_CHANNELS} channels, as the examples read them in RGB, got "
            f"{backbone.config.channels}; choose another --backbone"
        )
    if scratch:
        config = backbone.config
        backbone = Backbone(encoder=config.module(config), norms={}, images=backbone.images)
    backbone.encoder.requires_grad_(True)
    return backbone


def pyramid_of(backbone: Backbone, build: Callable[[Any], Pyramid]) -> Pyramid:
    """Build a pyramid over an encoder.

    Raises:
        TransferError: there is none for such an encoder.
    """
    try:
        return build(backbone.encoder)
    except ValueError as error:
        raise TransferError(str(error)) from error

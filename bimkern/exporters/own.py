"""Folders of our own: an encoder of any kind and its last norm, under our own names."""

from pathlib import Path

from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained, depths
from bimkern.exporters.whole_file import write_json, write_weights
from bimkern.models.encoder import OWN_LAYOUT, WEIGHTS_FILE
from bimkern.pieces import to_json


def write_own(path: Path, trained: Trained, depth: int) -> None:
    """Write the weights, and the encoder's config as config.json.

    Raises:
        ConfigError: the folder cannot be written.
    """
    write_weights(path / WEIGHTS_FILE, trained.backbone(depth, OWN_LAYOUT), trained.metadata(depth))
    write_json(path / "config.json", to_json(trained.encoder(depth)))


def write_backbones(folder: Path, trained: Trained) -> None:
    """Write a backbone for every depth, for timm where it has such an encoder.

    Raises:
        ConfigError: the folder cannot be written.
    """
    write = write_own if trained.config.method.encoder.layout("timm") is None else write_timm
    for depth in depths(trained.config.method):
        write(folder / f"backbone-depth{depth:02d}", trained, depth)

"""Small data sets and encoders for the examples."""

from dataclasses import replace

import pytest
from interop import import_or_skip
from saved_runs import make_run
from small_swin import SMALL

from bimkern.exporters.own import write_own
from bimkern.exporters.trained import Trained
from bimkern.mim.model import MIM
from bimkern.models.swin import SwinConfig
from bimkern.recipes import RECIPES

import_or_skip("torchvision")
import_or_skip("pycocotools")


@pytest.fixture
def few(monkeypatch):
    """Draw few images."""
    from examples.transfer import shapes

    monkeypatch.setattr(shapes, "NUM_TRAIN", 16)
    monkeypatch.setattr(shapes, "NUM_TEST", 4)


@pytest.fixture
def vit_run(tmp_path):
    """A run folder with a tiny ViT."""
    make_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def swin_export(tmp_path):
    """An exported tiny Swin."""
    config = RECIPES["fastmim_swin_tiny_test"].config
    encoder = SwinConfig(**SMALL | {"image_size": 64, "window": 2})
    masker = replace(config.method.masker, mask_unit=8)
    method = replace(config.method, encoder=encoder, taps=(encoder.depth - 1,), masker=masker)
    write_own(tmp_path / "swin", Trained(replace(config, method=method), 7, MIM(method).state_dict()), encoder.depth)
    return tmp_path / "swin"

"""Small data sets and encoders for the examples."""

import pytest
import small_swin
from saved_runs import make_run

from bimkern.exporters.own import write_own
from bimkern.exporters.trained import Trained
from bimkern.mim.model import MIM


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
    config = small_swin.recipe(window=2)
    depth = config.method.encoder.depth
    write_own(tmp_path / "swin", Trained(config, 7, MIM(config.method).state_dict()), depth)
    return tmp_path / "swin"

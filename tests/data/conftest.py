"""What several tests of loading start from; a file with other needs has its own fixtures of these names."""

import pytest
import torch
from bad_files import picture

from bimkern.data.loader import choose_loader


@pytest.fixture
def folder(tmp_path):
    """Nine small images of different sizes."""
    for i in range(9):
        picture(40 + i, 30, seed=i).save(tmp_path / f"{i}.jpg")
    return tmp_path


@pytest.fixture(params=["pil", "dali"])
def loader(request):
    """Return a function of the number of workers."""
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return lambda workers: choose_loader(request.param, torch.device("cpu"), workers)[0]

import copy

import pytest
import torch

from bimkern.nn import HOG
from bimkern.ops import hog


def draw(device, dtype=torch.float32):
    return torch.randint(0, 256, (2, 3, 32, 48), device=device).to(dtype)


@pytest.mark.parametrize("cells", [8, (4, 8), [16]], ids=str)
@pytest.mark.parametrize("options", [{}, {"bins": 18}, {"window": 16}, {"patch": 16}], ids=str)
def test_is_the_op(device, cells, options):
    images = draw(device, torch.uint8)
    got, want = HOG(cells, **options)(images), hog(images, cells, **options)
    assert isinstance(got, tuple) == (not isinstance(cells, int))
    pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_random_bias_is_drawn_once_for_every_cell_size(device):
    module = HOG((4, 8), random_bias=True).to(device)
    assert module.bias.shape == (2, 2)
    assert module.bias.unique().numel() == 4
    assert not torch.equal(module.bias, HOG((4, 8), random_bias=True).bias.to(device))
    many = HOG((8,) * 8, random_bias=True, generator=torch.Generator().manual_seed(0)).bias
    assert many.abs().max() < 1 / 3
    assert many.min() < -0.2
    assert many.max() > 0.2
    images = draw(device) / 255
    for got, want in zip(module(images), hog(images, (4, 8), bias=module.bias.tolist()), strict=True):
        assert torch.equal(got, want)
    assert not torch.equal(module(images)[0], hog(images, 4))


def test_one_cell_size_takes_one_pair(device):
    module = HOG(8, random_bias=True).to(device)
    images = draw(device) / 255
    assert torch.equal(module(images), hog(images, 8, bias=tuple(module.bias[0].tolist())))


def test_the_bias_is_saved_and_loaded_with_the_model(device):
    images = draw(device) / 255
    first, second = (torch.nn.Sequential(HOG(8, random_bias=True)).to(device) for _ in range(2))
    assert not torch.equal(first(images), second(images))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))
    assert torch.equal(copy.deepcopy(first)(images), first(images))


def test_a_generator_repeats_the_bias():
    first, second = (HOG(8, random_bias=True, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.bias, second.bias)


def test_without_bias_nothing_is_saved():
    assert not HOG(8).state_dict()
    assert repr(HOG(8)) == "HOG(cells=8, bins=9, window=None, patch=None)"

"""How a patched model of vit-pytorch cuts images: by our op in place of einops' layer, else by its layer."""

import copy

import pytest
import torch
from dropin_hosts import vit_pytorch
from interop import import_or_skip

from bimkern.dropin import patch
from bimkern.dropin.hosts import vit_pytorch as hosts

IMAGES = torch.rand(3, 3, 32, 32)


def loss_of(model):
    torch.manual_seed(1)
    return model(IMAGES)


@pytest.fixture
def model():
    return vit_pytorch("MAE", "mean", decoder_dim=12)


@pytest.fixture
def calls(monkeypatch):
    """Collect the calls of our op."""
    calls, op = [], hosts.pixel_targets
    monkeypatch.setattr(hosts, "pixel_targets", lambda *args, **options: (calls.append(args), op(*args, **options))[1])
    return calls


def test_our_op_cuts_the_same_patches(model, calls):
    to_patch = model.to_patch
    for images in (IMAGES, torch.rand(2, 3, 16, 48), IMAGES.double(), IMAGES.to(memory_format=torch.channels_last)):
        assert torch.equal(hosts._cut(to_patch, images), to_patch(images))
    assert len(calls) == 4


def test_other_images_are_cut_by_the_hosts_layer(model, calls):
    assert torch.equal(hosts._cut(model.to_patch, IMAGES.half()), model.to_patch(IMAGES.half()))
    with pytest.raises(Exception, match=r"can't divide axis of length 30"):
        hosts._cut(model.to_patch, torch.rand(1, 3, 30, 32))
    assert not calls


def test_a_layer_that_cuts_otherwise_is_called(model, calls):
    Rearrange = import_or_skip("einops.layers.torch").Rearrange

    class Twice(Rearrange):
        def forward(self, images):
            return 2 * super().forward(images)

    usual, columns_first = (f"b c (h p1) (w p2) -> b ({order}) (p1 p2 c)" for order in ("h w", "w h"))
    squares, oblongs = {"p1": 8, "p2": 8}, {"p1": 4, "p2": 16}
    for layer in (Twice(usual, **squares), Rearrange(columns_first, **squares), Rearrange(usual, **oblongs)):
        other = copy.deepcopy(model)
        other.to_patch = layer
        expected = loss_of(other)
        patch(other)
        torch.testing.assert_close(loss_of(other), expected, rtol=1e-6, atol=0)
    assert not calls


def test_a_hook_on_the_layer_is_called(model, calls):
    patch(model)
    seen = []
    model.to_patch.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    loss_of(model)
    assert seen == [(3, 16, 192)]
    assert not calls

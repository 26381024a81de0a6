"""Feature pyramids: which maps they read, at which sizes, and with which positions."""

import pytest
import timm_swin
import torch
import torch.nn.functional as F
from small_swin import SMALL, build

from bimkern.models.cmt import CMT, CMTConfig
from bimkern.models.encoder import WholeImages
from bimkern.models.layers import set_compute_dtype
from bimkern.models.pyramid import STRIDES, ViTPyramid, depths_pyramid, kept, last_map_pyramid
from bimkern.models.swin import Swin, SwinConfig
from bimkern.models.vit import ViT, ViTConfig


def vit(**changes):
    return ViT(ViTConfig(**{"image_size": 64, "patch": 8, "width": 32, "depth": 6, "num_heads": 2} | changes))


def tokens_after(encoder, images, layer):
    grid = encoder.grid(images)
    tokens = encoder.embed(images)
    for i in range(layer + 1):
        tokens = encoder.run_layer(i, tokens, WholeImages(grid))
    return tokens[:, 1:].mT.unflatten(2, grid)


@pytest.mark.parametrize("patch", [4, 8, 16, 32])
@pytest.mark.parametrize("build_pyramid", [last_map_pyramid, depths_pyramid])
def test_maps_of_a_vit_have_four_strides_and_gradients_reach_every_weight(build_pyramid, patch):
    pyramid = build_pyramid(vit(patch=patch))
    maps = pyramid(torch.randn(2, 3, 96, 64))
    assert [tuple(found.shape) for found in maps] == [
        (2, channels, 96 // stride, 64 // stride)
        for channels, stride in zip(pyramid.channels, STRIDES, strict=True)
    ]  # fmt: skip
    sum(found.square().sum() for found in maps).backward()
    assert not [name for name, parameter in pyramid.named_parameters() if parameter.grad is None]


def test_channels_halve_with_each_deconvolution_of_a_simple_pyramid():
    assert last_map_pyramid(vit(patch=16)).channels == (8, 16, 32, 32)
    assert depths_pyramid(vit(patch=16)).channels == (32, 32, 32, 32)


@pytest.mark.parametrize(
    ("depth", "taps"), [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (4, (0, 1, 1, 3)), (1, (0,) * 4)]
)
def test_depths_are_those_of_mae_in_proportion(depth, taps):
    with torch.device("meta"):
        encoder = vit(depth=depth)
    assert depths_pyramid(encoder).taps == taps


def test_each_map_is_rescaled_from_its_layer():
    encoder = vit(patch=4).double()
    set_compute_dtype(encoder, torch.float64)
    pyramid = ViTPyramid(encoder, (1, 2, 2, 5), kept).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for found, tap, stride in zip(pyramid(images), (1, 2, 2, 5), STRIDES, strict=True):
        whole = tokens_after(encoder, images, tap)  # patches of 4: all scales are at most 1
        torch.testing.assert_close(found, F.max_pool2d(whole, stride // 4))


def test_positions_of_other_sizes_are_resized_from_the_trained_ones():
    encoder = vit()
    images = torch.randn(1, 3, 160, 96)
    patches = encoder.patch_embed(images, torch.arange(20 * 12).expand(1, -1))
    computed = encoder.positions.computed((8, 8))[:, 1:]
    before = encoder.embed(images)
    pyramid = last_map_pyramid(encoder)
    resized = F.interpolate(computed.mT.unflatten(2, (8, 8)), (20, 12), mode="bicubic").flatten(2).mT
    found = pyramid.encoder.embed(images)
    torch.testing.assert_close(found[:, 1:], patches + resized)
    assert torch.equal(found[:, :1], before[:, :1])
    assert not torch.allclose(found, before, atol=0.1)  # sine and cosine of positions far beyond the trained ones
    again = last_map_pyramid(vit())
    again.load_state_dict(pyramid.state_dict())
    assert torch.equal(again.encoder.embed(images), found)


@pytest.mark.parametrize("trains", [True, False])
def test_positions_learn_where_the_encoder_does(trains):
    pyramid = last_map_pyramid(vit().requires_grad_(trains))
    assert dict(pyramid.named_parameters())["encoder.positions.table"].requires_grad == trains
    assert pyramid.encoder.embed(torch.randn(1, 3, 96, 64)).requires_grad == trains


@pytest.mark.parametrize("window", [2, 4])
def test_levels_of_a_swin_are_those_of_timm_before_merging(window):
    encoder = build(window, image_size=64)
    pyramid = last_map_pyramid(encoder).double()
    set_compute_dtype(pyramid, torch.float64)
    images = torch.randn(2, 3, 128, 64, dtype=torch.float64)
    theirs = timm_swin.like(encoder, (128, 64))
    x = theirs.patch_embed(images)
    for stage, found in zip(theirs.layers, pyramid(images), strict=True):
        x = stage.blocks(stage.downsample(x))
        torch.testing.assert_close(found, F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2))
    assert pyramid.channels == (8, 16, 32, 64)


def test_layers_that_a_swin_left_to_fine_tuning_are_added():
    encoder = Swin(
        SwinConfig(**SMALL | {"depths": (2, 2, 2, 0), "whole_depths": (2, 2, 2, 2), "image_size": 64, "window": 2})
    )
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    pyramid = last_map_pyramid(encoder)
    assert pyramid.encoder.config.depths == (2, 2, 2, 2)
    weights = pyramid.encoder.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())
    maps = pyramid(torch.randn(1, 3, 64, 64))
    sum(found.square().sum() for found in maps).backward()
    assert not [name for name, parameter in pyramid.named_parameters() if parameter.grad is None]


def test_a_frozen_swin_stays_frozen_and_keeps_its_precision_where_layers_are_added():
    encoder = Swin(
        SwinConfig(**SMALL | {"depths": (2, 2, 2, 0), "whole_depths": (2, 2, 2, 2), "image_size": 64, "window": 2})
    )
    set_compute_dtype(encoder.requires_grad_(False).eval(), torch.bfloat16)
    pyramid = last_map_pyramid(encoder)
    learning = {name for name, parameter in pyramid.encoder.named_parameters() if parameter.requires_grad}
    assert {name.rpartition("blocks")[0] for name in learning} == {"layers.3."}
    assert {module.compute_dtype for module in pyramid.encoder.modules() if hasattr(module, "compute_dtype")} == {
        torch.bfloat16
    }
    assert not pyramid.encoder.training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: depths_pyramid(vit(), ()), r"taps must be 4 ascending layers in \[0, 6\), got \(\)"),
        (lambda: last_map_pyramid(vit(patch=14, image_size=56)), "patch must be one of 4, 8, 16, 32, got 14"),
        (
            lambda: depths_pyramid(vit(), (1, 2, 3)),
            r"taps must be 4 ascending layers in \[0, 6\), got \(1, 2, 3\)",
        ),
        (
            lambda: depths_pyramid(vit(), (1, 2, 3, 6)),
            r"taps must be 4 ascending layers in \[0, 6\), got \(1, 2, 3, 6\)",
        ),
        (
            lambda: last_map_pyramid(Swin(SwinConfig(width=8, depths=(1, 1), num_heads=(1, 1)))),
            r"a Swin must have patches of 4 and 4 stages with layers, got patches of 4 and depths \(1, 1\)",
        ),
        (
            lambda: last_map_pyramid(
                CMT(CMTConfig(widths=(8,), depths=(1,), num_heads=(1,), reductions=(1,), stem_width=8, image_size=64))
            ),
            "encoder must be a ViT or a Swin, got CMT",
        ),
        (
            lambda: last_map_pyramid(vit())(torch.randn(1, 3, 64, 72)),
            r"images must be \[B, C, H, W\] with H and W multiples of 32, got \[1, 3, 64, 72\]",
        ),
    ],
)
def test_what_has_no_pyramid_is_refused(make, message):
    with pytest.raises(ValueError, match=f"pyramid: {message}"):
        make()

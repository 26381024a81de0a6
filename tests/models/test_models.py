"""Encoders, heads, and the precision policy."""

import copy
import io
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from bimkern.models.cmt import CMT_SMALL
from bimkern.models.encoder import WholeImages
from bimkern.models.heads import DecoderConfig, LinearConfig, TransformerDecoder
from bimkern.models.layers import LayerNorm, TransformerLayer, set_compute_dtype
from bimkern.models.pos_embed import sincos_table
from bimkern.models.swin import SwinConfig
from bimkern.models.vit import VIT_BASE, VIT_HUGE, VIT_LARGE, VIT_SMALL, VIT_TINY, ViT, ViTConfig

SMALL = ViTConfig(image_size=32, patch=8, width=32, depth=2, num_heads=2)


def test_moving_a_column_changes_the_first_half_and_a_row_the_second():
    table = sincos_table(16, (3, 5)).reshape(3, 5, 16)
    assert torch.equal(table[1, 2, 8:], table[1, 4, 8:])
    assert not torch.equal(table[1, 2, :8], table[1, 4, :8])
    assert torch.equal(table[0, 3, :8], table[2, 3, :8])
    assert not torch.equal(table[0, 3, 8:], table[2, 3, 8:])


def test_position_halves_are_sine_then_cosine():
    table = sincos_table(8, (2, 2))
    omega = 10000**-0.5
    column = [torch.tensor(1.0).sin(), torch.tensor(omega).sin(), torch.tensor(1.0).cos(), torch.tensor(omega).cos()]
    torch.testing.assert_close(table[1], torch.tensor([*column, 0.0, 0.0, 1.0, 1.0]))  # row 0, column 1


def test_position_width_must_be_a_multiple_of_4():
    with pytest.raises(ValueError, match="sincos_table: width must be a multiple of 4, got 6"):
        sincos_table(6, (2, 2))


@pytest.mark.parametrize(
    ("config", "millions"),
    # Without classifier and final norm; Dosovitskiy et al. 2021, table 1, and Touvron et al. 2021, table 1.
    [(VIT_TINY, 5.5), (VIT_SMALL, 21.6), (VIT_BASE, 85.6), (VIT_LARGE, 303.1), (VIT_HUGE, 630.4)],
)
def test_sizes_are_those_of_the_papers(config, millions):
    with torch.device("meta"):
        model = ViT(config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.3)


def test_embedding_keeps_the_chosen_patches_behind_the_cls_token():
    torch.manual_seed(0)
    model = ViT(SMALL).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    everything = model.embed(images)
    keep = torch.tensor([[1, 5, 9], [0, 2, 15]])
    some = model.embed_visible(images, keep)
    assert torch.equal(some[:, 0], model.cls_token[0].expand(2, -1))
    for b in range(2):
        # Close, not equal: how a row of a matrix product is rounded may depend on the number of rows.
        torch.testing.assert_close(some[b, 1:], everything[b, 1 + keep[b]])


def test_a_patch_is_embedded_by_the_published_kernel_layout():
    torch.manual_seed(0)
    model = ViT(SMALL).double()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    token = model.patch_embed(images, torch.tensor([[4 + 2]]))[0, 0]  # row 1, column 2
    patch = images[0, :, 8:16, 16:24]
    expected = (model.patch_embed.weight * patch).sum((1, 2, 3)) + model.patch_embed.bias
    torch.testing.assert_close(token, expected)


def test_decoder_predicts_every_patch_and_drops_the_prefix():
    decoder = TransformerDecoder(
        DecoderConfig(width=16, depth=2, num_heads=2), in_width=32, out_length=12, num_prefix=1
    )
    keep = torch.arange(6).expand(3, -1)
    assert decoder(torch.randn(3, 7, 32), keep, (4, 5)).shape == (3, 20, 12)


def test_a_decoder_may_have_no_layer():
    decoder = TransformerDecoder(
        DecoderConfig(width=16, depth=0, num_heads=2), in_width=32, out_length=12, num_prefix=1
    )
    assert decoder(torch.randn(3, 3, 32), torch.arange(2).expand(3, -1), (4, 4)).shape == (3, 16, 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_policy(dtype):
    """Products in half precision; norms and the residual stream in float32."""
    torch.manual_seed(0)
    layer = TransformerLayer(32, 2)
    x = torch.randn(2, 5, 32)
    exact = layer(x)
    set_compute_dtype(layer, dtype)
    seen = {}
    for name, module in layer.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, (args[0].dtype, out.dtype)))
    out = layer(x)
    assert out.dtype == torch.float32
    assert seen["norm1"] == seen["norm2"] == (torch.float32, torch.float32)
    assert all(seen[name][1] == dtype for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))
    assert not torch.equal(out, exact)
    torch.testing.assert_close(out, exact, rtol=0, atol=20 * torch.finfo(dtype).eps)
    assert all(p.dtype == torch.float32 for p in layer.parameters())


def test_layer_norm_eps_is_that_of_the_published_models():
    assert LayerNorm(4).eps == 1e-6


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(image_size=32, patch=8, width=32, depth=1, num_heads=2),
        SwinConfig(image_size=32, width=16, depths=(1, 1), num_heads=(1, 2), window=4),
    ],
    ids=lambda config: type(config).__name__,
)
def test_an_encoder_that_was_run_and_saved_runs_on_another_device(config):
    encoder, images = config.module(config), torch.randn(1, 3, 32, 32)
    view = WholeImages(config.level(0).grid(32, 32))
    expected = encoder.run_layer(0, encoder.embed(images), view)
    file = io.BytesIO()
    torch.save(encoder, file)
    file.seek(0)
    loaded = torch.load(file, map_location="meta", weights_only=False).to_empty(device="cpu")
    loaded.load_state_dict(encoder.state_dict())
    assert torch.equal(loaded.run_layer(0, loaded.embed(images), view), expected)


@pytest.mark.parametrize("trains", [True, False])
def test_positions_are_those_that_a_functional_call_brings(trains):
    encoder, images, name = ViT(SMALL), torch.randn(1, 3, 32, 32), "encoder.positions.table"
    if trains:
        encoder.positions.train_table(encoder.cls_token)
    else:
        encoder.positions.expect_table(encoder.cls_token)
        encoder.positions.table.normal_()
    model = nn.ModuleDict({"encoder": encoder})
    model.forward = lambda: encoder.embed(images)
    table = encoder.positions.table.detach().clone()
    found = [functional_call(model, {name: (table + i).requires_grad_()}, ()) for i in (1, 2)]
    torch.testing.assert_close(found[1] - found[0], torch.ones_like(found[0]))
    torch.testing.assert_close(found[0] - encoder.embed(images), torch.ones_like(found[0]))
    computed = {name: (table + 1).requires_grad_() * 1}  # which copies of the encoder do not hold
    torch.testing.assert_close(functional_call(model, computed, ()), found[0])
    torch.testing.assert_close(copy.deepcopy(encoder).embed(images), encoder.embed(images))


def test_configs_say_what_is_wrong():
    with pytest.raises(ValueError, match="ViTConfig: image_size must be a multiple of patch=16, got 225"):
        ViTConfig(width=64, depth=1, num_heads=1, image_size=225)
    with pytest.raises(ValueError, match="ViTConfig: width must be a multiple of num_heads=3, got 64"):
        ViTConfig(width=64, depth=1, num_heads=3)
    with pytest.raises(ValueError, match="ViTConfig: patch must be at least 1, got 0"):
        ViTConfig(width=64, depth=1, num_heads=2, patch=0)
    with pytest.raises(ValueError, match="DecoderConfig: width must be a multiple of num_heads=7, got 512"):
        DecoderConfig(num_heads=7)
    with pytest.raises(ValueError, match="ViTConfig: width must be a multiple of 4 for its positions, got 18"):
        ViTConfig(width=18, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="DecoderConfig: width must be a multiple of 4 for its positions, got 18; or"):
        DecoderConfig(width=18, num_heads=2)
    assert DecoderConfig(width=18, num_heads=2, positions=False).width == 18
    for config, width in (
        (lambda: ViTConfig(width=32, depth=1, num_heads=2, mlp_ratio=0.03), 32),
        (lambda: DecoderConfig(width=32, num_heads=2, mlp_ratio=0.03), 32),
        (lambda: SwinConfig(width=8, depths=(1, 1), num_heads=(1, 1), mlp_ratio=0.12), 8),
        (lambda: replace(CMT_SMALL, mlp_ratio=0.015), 64),
    ):
        with pytest.raises(ValueError, match=rf"Config: mlp_ratio must be at least 1 / {width}, for one inner value"):
            config()
    for std in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"LinearConfig: init_std must be above 0 and finite, got {std}"):
            LinearConfig(init_std=std)

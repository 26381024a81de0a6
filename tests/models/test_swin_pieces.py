"""What a Swin is made of: its numbers, its mergings, its tables, and what stands for masked patches."""

import re
from dataclasses import replace

import pytest
import timm_swin
import torch
import torch.nn.functional as F
from small_swin import SMALL, build, taps

from bimkern.mim.mask_embedding import DropMasked, MaskPixels, MaskToken
from bimkern.mim.masking.units import BlockPixels, TokenReplace
from bimkern.models.encoder import WholeImages
from bimkern.models.layers import set_compute_dtype
from bimkern.models.swin import SWIN_BASE, SWIN_LARGE, SwinConfig
from bimkern.models.swin_layers import PatchMerging, resized_table
from bimkern.models.windows import plan_windows

_MORE = "whole_depths must be depths=(2, 2, 2, 2), with more layers in the last stage at most"
MEAN, STD = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)


def merged(tokens, grid):
    """Return the normalized fours that are merged of tokens [B, T, 1], as a merging reads them: [B, T / 4, 4]."""
    layer = PatchMerging(1).double()
    set_compute_dtype(layer, torch.float64)
    with torch.no_grad():
        fours = []
        for start in (0, 2):  # its two outputs are two of what it reads
            layer.reduction.weight.copy_(torch.eye(4, dtype=torch.float64)[start : start + 2])
            plan = plan_windows(torch.arange(grid[0] * grid[1])[None], grid, (2, 2))
            fours.append(layer(tokens, plan.levels[0].merge))
    return torch.cat(fours, dim=2)


def test_merging_goes_column_by_column():
    """As in Swin's own program; LocalMIM's published one goes row by row."""
    image = torch.randn(1, 1, 4, 6, dtype=torch.float64)
    a, b, c, d = (image[:, 0, r::2, s::2] for s in (0, 1) for r in (0, 1))
    swin = F.layer_norm(torch.stack([a, b, c, d], dim=-1), (4,)).flatten(1, 2)
    found = merged(image.flatten(2).mT, (4, 6))
    torch.testing.assert_close(found, swin)
    assert not torch.allclose(found, swin[..., [0, 2, 1, 3]])


def test_a_table_of_the_same_window_is_the_parameter_itself():
    table = torch.randn(169, 3)
    assert resized_table(table, (7, 7), (7, 7)) is table


@pytest.mark.parametrize(("old", "new"), [((14, 14), (8, 8)), ((7, 7), (5, 7)), ((4, 6), (7, 3))])
def test_tables_are_resized_bicubically(old, new):
    sides = [[2 * side - 1 for side in window] for window in (old, new)]
    table = torch.randn(sides[0][0] * sides[0][1], 3, dtype=torch.float64, requires_grad=True)
    image = table.mT.unflatten(1, sides[0])[None]
    expected = F.interpolate(image, sides[1], mode="bicubic", align_corners=False)[0].flatten(1).mT
    found = resized_table(table, old, new)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    for ours, theirs in zip(*(torch.autograd.grad(x, table, weight) for x in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_windows_are_clamped_to_each_side_of_the_grid():
    assert [SWIN_LARGE.table_window(stage) for stage in range(4)] == [(7, 7)] * 4
    wide = replace(SWIN_BASE, window=14)
    assert [wide.table_window(stage) for stage in range(4)] == [(14, 14)] * 3 + [(7, 7)]
    levels = plan_windows(torch.arange(40 * 72)[None], (40, 72), wide.windows((40, 72))).levels
    assert [level.window for level in levels] == [(14, 14), (14, 14), (10, 14), (5, 9)]
    assert [level.shifted is level.plain for level in levels] == [False, False, False, True]


def test_windows_may_grow_with_images():
    """FastMIM-P: windows of 8, 10 and 12 at 128, 160 and 192 pixels for tables of 14 at 224."""
    config = replace(SWIN_LARGE, window=14, window_image_size=224, image_size=192)
    assert [config.windows((side // 4,) * 2)[0] for side in (128, 160, 192, 224)] == [8, 10, 12, 14]
    assert [config.table_window(stage) for stage in range(4)] == [(14, 14)] * 3 + [(7, 7)]


def test_tables_of_smaller_windows_learn():
    model = build(7, image_size=224)
    tables = [p for name, p in model.named_parameters() if name.endswith("table")]
    assert {len(table) for table in tables} == {169}
    *_, last = taps(model, torch.randn(1, 3, 64, 96, dtype=torch.float64), WholeImages((16, 24)))
    last.square().sum().backward()
    assert all(table.grad.abs().sum() > 0 for table in tables)


def test_it_learns_after_it_was_run_in_inference_mode():
    model, images = build(2, image_size=64), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected = taps(model, images, WholeImages((16, 16)))[-1]
    found = taps(model, images, WholeImages((16, 16)))[-1]
    found.sum().backward()
    assert torch.equal(found.detach(), expected)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_layers_are_numbered_over_all_stages():
    assert [SWIN_BASE.level(n).patch for n in (0, 1, 2, 3, 4, 21, 22, 24)] == [4, 4, 8, 8, 16, 16, 32, 32]
    assert [SWIN_BASE.level(n).width for n in (0, 2, 4, 22, 24)] == [128, 256, 512, 1024, 1024]
    assert SWIN_BASE.level(0).grid(224, 160) == (56, 40)
    names = {
        "patch_embed.norm.bias": 0,
        "layers.0.blocks.1.attn.qkv.weight": 2,
        "layers.1.downsample.norm.weight": 2,
        "layers.1.blocks.0.norm1.weight": 3,
        "layers.3.downsample.reduction.weight": 22,
        "layers.3.blocks.1.mlp.fc2.bias": 24,
    }
    assert {name: SWIN_BASE.layer_group(name) for name in names} == names


def test_it_is_cut_behind_any_layer():
    cut = {depth: SWIN_BASE.cut(depth).depths for depth in (1, 2, 3, 4, 22, 23, 24)}
    assert cut == {
        1: (1,), 2: (2, 0), 3: (2, 1), 4: (2, 2, 0), 22: (2, 2, 18, 0), 23: (2, 2, 18, 1), 24: (2, 2, 18, 2),
    }  # fmt: skip
    for depth in cut:
        config = SWIN_BASE.cut(depth)
        assert (config.depth, config.level(depth), config.cut(depth)) == (depth, SWIN_BASE.level(depth), config)


@pytest.mark.parametrize("depth", [3, 4, 6, 7])
def test_what_is_cut_off_changes_nothing(depth):
    model, images = build(4), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    config = model.config.cut(depth)
    weights = {name: w for name, w in model.state_dict().items() if model.config.layer_group(name) <= depth}
    part = config.module(config).double()
    part.load_state_dict(weights)
    set_compute_dtype(part, torch.float64)
    view = WholeImages((16, 16))
    found = [encoder.embed(images) for encoder in (model, part)]
    for layer in range(depth):
        found = [encoder.run_layer(layer, x, view) for encoder, x in zip((model, part), found, strict=True)]
    assert torch.equal(*found)
    assert found[0].shape[2] == config.level(depth).width
    theirs = timm_swin.taps(timm_swin.like(part, (64, 64)), images)[-1].flatten(1, 2)
    torch.testing.assert_close(found[0], theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_residual_stream_is_float32_in_every_stage(dtype):
    model = SwinConfig(**SMALL)
    encoder = model.module(model)
    set_compute_dtype(encoder, dtype)
    tokens = encoder.embed(torch.randn(1, 3, 64, 64))
    for layer in range(model.depth):
        tokens = encoder.run_layer(layer, tokens, WholeImages((16, 16)))
        assert tokens.dtype == torch.float32


@pytest.mark.parametrize("masker", [TokenReplace(ratio=0.6, mask_unit=8), TokenReplace(ratio=0.6)])
def test_a_token_replaces_what_the_patch_norm_puts_out(masker):
    model, images = build(7), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    (view,) = masker.views(torch.arange(2), (16, 16), 1, 0)
    embedding = MaskToken(model.config).double()
    filled = embedding(model, images, view, MEAN, STD)
    expected = torch.where(view.masked[..., None] > 0, embedding.mask_token, model.embed(images, MEAN, STD))
    torch.testing.assert_close(filled, expected)


def test_painted_pixels_are_those_of_the_color():
    model, images = build(7), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    (view,) = BlockPixels(ratio=0.75, mask_unit=8).views(torch.arange(2), (16, 16), 1, 0)
    embedding = MaskPixels(model.config).double()
    masked = F.interpolate(view.masked.double().unflatten(1, (1, 16, 16)), (64, 64))
    painted = torch.where(masked > 0, embedding.mask_token, images.double() / 255)
    torch.testing.assert_close(embedding(model, images, view, MEAN, STD), model.embed(painted))
    assert DropMasked(model.config)(model, images, view, MEAN, STD).shape == (2, 64, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be above 0 and finite, got 0.0"),
        ({"depths": (2, 0, 2, 2)}, "depths must be at least 1, but for the last of several, got (2, 0, 2, 2)"),
        ({"depths": (0,), "num_heads": (1,)}, "depths must be at least 1, but for the last of several, got (0,)"),
        ({"num_heads": (1, 2)}, "num_heads must hold one value per stage (4), got (1, 2)"),
        ({"num_heads": (1, 2, 3, 4)}, "num_heads of stage 2 must divide its width 32, got 3"),
        ({"whole_depths": (2, 2, 2)}, f"{_MORE}, got (2, 2, 2)"),
        ({"whole_depths": (2, 2, 4, 2)}, f"{_MORE}, got (2, 2, 4, 2)"),
        ({"whole_depths": (2, 2, 2, 1)}, f"{_MORE}, got (2, 2, 2, 1)"),
        ({"whole_depths": ()}, f"{_MORE}, got ()"),
        ({"image_size": 200}, "image_size must be a multiple of 32, the patches after 3 mergings, got 200"),
        ({"window_image_size": 100}, "window_image_size must be a multiple of 32, the patches after 3 mergings, got"),
    ],
)
def test_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=re.escape(f"SwinConfig: {message}")):
        SwinConfig(**SMALL | changes)


def test_a_grid_that_cannot_be_merged_is_named():
    model = build(7)
    tokens = model.embed(torch.randn(1, 3, 64, 72, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"Swin: the grid of level 1 must have even rows and columns .* got \(8, 9\)"):
        model.run_layer(0, tokens, WholeImages((16, 18)))

"""The attention of encoders: uniform attention has known measures, and batches do not matter."""

from dataclasses import replace
from math import inf, isnan, log, nan

import pytest
import torch
from interop import import_or_skip
from saved_runs import make_run

from bimkern.evaluate.attention_analysis import analyze
from bimkern.evaluate.backbone import read_backbone
from bimkern.evaluate.errors import EvaluationError
from bimkern.evaluate.labeled import Unlabeled

HEADS = ("distance_px", "entropy_nats", "nmi", "kl_heads_nats")


def noise(count=20):
    """Return random images, the same whenever they are read, cut to an encoder's size."""
    pixels = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)

    def read(indices, images, channels):
        return pixels[list(indices), :channels, : images.image_size.height, : images.image_size.height]

    return Unlabeled(count=count, read=read)


def backbone_of(tmp_path, recipe):
    make_run(tmp_path / recipe, recipe)
    return read_backbone(tmp_path / recipe)


def attend_uniformly(encoder):
    """Make all logits zero: those of queries, and biases."""
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if ".qkv." in name:
                parameter[: len(parameter) // 3] = 0
            elif ".attn." in name and (".query." in name or name.endswith(("bias_table", "attn.bias"))):
                parameter.zero_()


def spread(rows, columns, side):
    """Return the mean distance in a window of patches of some pixels a side, each to each."""
    patches = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    return side * torch.cdist(patches, patches).mean().item()


def check(layer, distance, entropy):
    assert layer.distance_px == pytest.approx([distance] * len(layer.distance_px), rel=1e-4)
    assert layer.entropy_nats == pytest.approx([entropy] * len(layer.entropy_nats), rel=1e-4)
    assert layer.nmi == pytest.approx([0] * len(layer.nmi), abs=1e-4)
    alone = len(layer.nmi) == 1
    assert layer.kl_heads_nats == pytest.approx([nan if alone else 0] * len(layer.nmi), abs=1e-4, nan_ok=True)


def test_uniform_attention_of_a_vit(tmp_path):
    backbone = backbone_of(tmp_path, "mae_vit_test")
    config = backbone.config
    attend_uniformly(backbone.encoder)
    layers = analyze({"mae": backbone}, noise())["mae"]
    assert [layer.layer for layer in layers] == list(range(1, config.depth + 1))
    for layer in layers:
        check(layer, spread(*config.grid, config.patch), log(config.grid[0] * config.grid[1]))
        assert len(layer.nmi) == config.num_heads
        assert layer.kl_layers_nats == pytest.approx([0] * config.depth, abs=1e-4)
        assert layer.cka["mae"][layer.layer - 1] == pytest.approx(1)


def test_uniform_attention_in_windows_of_a_swin(tmp_path):
    backbone = backbone_of(tmp_path, "bim_swin_tiny_test")
    config = backbone.config
    assert (config.patch, config.window, config.depths) == (4, 4, (2, 2, 2))  # grids of 16, 8 and 4 patches
    attend_uniformly(backbone.encoder)
    layers = analyze({"swin": backbone}, noise())["swin"]
    for stage, patch in enumerate((4, 8)):
        plain, shifted = layers[2 * stage : 2 * stage + 2]
        check(plain, spread(4, 4, patch), log(16))
        side = 16 // 2**stage
        cuts = [2, *[4] * (side // 4 - 1), 2]  # of shifted windows
        shares = [(a * b / side**2, a, b) for a in cuts for b in cuts]
        distance = sum(share * spread(a, b, patch) for share, a, b in shares)
        check(shifted, distance, sum(share * log(a * b) for share, a, b in shares))
        assert isnan(plain.kl_layers_nats[shifted.layer - 1]), "they attend to different keys"
    for layer in layers[4:]:  # a single window, which no layer shifts
        check(layer, spread(4, 4, 16), log(16))
        assert layer.kl_layers_nats == pytest.approx([nan] * 4 + [0, 0], abs=1e-4, nan_ok=True)


def test_uniform_attention_to_fewer_keys_of_a_cmt(tmp_path):
    backbone = backbone_of(tmp_path, "fastmim_cmt_test")
    config = backbone.config
    attend_uniformly(backbone.encoder)
    layers = analyze({"cmt": backbone}, noise())["cmt"]
    for index, layer in enumerate(layers):
        patch, reduction = config.level(index + 1).patch, config.reductions[config.stage(index)]
        side = 64 // patch
        centers = [patch * (torch.arange(side // k) * k + (k - 1) / 2) for k in (1, reduction)]
        distance = torch.cdist(*(torch.cartesian_prod(axis, axis) for axis in centers)).mean().item()
        check(layer, distance, 2 * log(side // reduction))


def test_sharp_attention_is_near(tmp_path):
    """Where queries are their own keys, with a large factor, every patch attends to itself."""
    backbone = backbone_of(tmp_path, "mae_vit_test")
    before = analyze({"mae": backbone}, noise())["mae"]
    with torch.no_grad():
        for block in backbone.encoder.blocks:
            width = len(block.attn.qkv.weight) // 3
            block.attn.qkv.weight[:width] = 100 * block.attn.qkv.weight[width : 2 * width]
            block.attn.qkv.bias.zero_()
    after = analyze({"mae": backbone}, noise())["mae"]
    for loose, sharp in zip(before, after, strict=True):
        assert max(sharp.distance_px) < min(loose.distance_px) / 2
        assert max(sharp.entropy_nats) < min(loose.entropy_nats) / 2
        assert min(sharp.nmi) > max(loose.nmi)


def test_measures_do_not_depend_on_the_batches(tmp_path):
    backbone, images = backbone_of(tmp_path, "mae_vit_test"), noise()
    together = analyze({"mae": backbone}, images)["mae"]
    batches = []
    counted = replace(images, read=lambda indices, *rest: batches.append(len(indices)) or images.read(indices, *rest))
    apart = analyze({"mae": backbone}, counted, batch_size=8)["mae"]
    assert batches == [6, 7, 7]
    for one, other in zip(together, apart, strict=True):
        for name in (*HEADS, "kl_layers_nats"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4, abs=1e-5), name


def test_images_are_spread_evenly(tmp_path):
    backbone, seen, images = backbone_of(tmp_path, "mae_vit_test"), [], noise(30)
    listed = replace(images, read=lambda indices, *rest: seen.extend(indices) or images.read(indices, *rest))
    analyze({"mae": backbone}, listed, num_images=10)
    assert seen == list(range(0, 30, 3))


def test_runs_are_compared_on_the_same_images(tmp_path):
    backbones = {recipe: backbone_of(tmp_path, recipe) for recipe in ("mae_vit_test", "bim_swin_tiny_test")}
    images = noise()
    found = analyze(backbones | {"again": backbones["mae_vit_test"]}, images)
    alone = analyze({"mae_vit_test": backbones["mae_vit_test"]}, images)["mae_vit_test"]
    for one, again, single in zip(found["mae_vit_test"], found["again"], alone, strict=True):
        assert [len(row) for row in one.cka.values()] == [4, 6, 4]
        for row in (one.cka["again"], again.cka["again"], single.cka["mae_vit_test"]):
            assert row == pytest.approx(one.cka["mae_vit_test"])
        assert one.nmi == again.nmi == single.nmi
        for other in found["bim_swin_tiny_test"]:
            there = one.cka["bim_swin_tiny_test"][other.layer - 1]
            assert there == pytest.approx(other.cka["mae_vit_test"][one.layer - 1])
            assert there < 1


@pytest.mark.parametrize("recipe", ["mae_vit_test", "bim_swin_tiny_test"])
def test_the_encoder_is_left_as_it_was(tmp_path, recipe):
    backbone = backbone_of(tmp_path, recipe)
    images = noise(3).read(range(3), backbone.images, 3)
    before = backbone.features(images, [backbone.config.depth])
    analyze({"run": backbone}, noise(4))
    assert not any(module._forward_pre_hooks for module in backbone.encoder.modules())
    after = backbone.features(images, [backbone.config.depth])
    assert torch.equal(before[backbone.config.depth], after[backbone.config.depth])


def test_cka_takes_four_images(tmp_path):
    with pytest.raises(EvaluationError, match="images must be at least 4, for CKA, got 3"):
        analyze({"mae": backbone_of(tmp_path, "mae_vit_test")}, noise(3))


def test_an_encoder_without_attention_is_refused(tmp_path):
    import_or_skip("timm")
    backbone = backbone_of(tmp_path, "fastmim_convnext_test")
    message = (
        r"TimmBackboneConfig: layer 1 must hold one module with attention_maps, got 0; attention of ViT, Swin and CMT"
    )
    with pytest.raises(EvaluationError, match=message):
        analyze({"convnext": backbone}, noise())


@pytest.mark.parametrize("value", [nan, inf])
def test_a_layer_that_puts_out_no_numbers_is_named(tmp_path, value):
    """A mean over images would leave out those without a number."""
    good, wrong = backbone_of(tmp_path, "mae_vit_test"), backbone_of(tmp_path, "bim_vit_test")
    for name, parameter in wrong.encoder.named_parameters():
        if wrong.config.layer_group(name) == 3:
            parameter.fill_(value)
    message = r"^the features behind layer 3 of wrong are not finite, and cannot be evaluated; train it again$"
    with pytest.raises(EvaluationError, match=message):
        analyze({"good": good, "wrong": wrong}, noise(), batch_size=8)

"""Backbones for detection and segmentation programs: all their names, no others, and the same features."""

from types import SimpleNamespace

import pytest
import small_swin
import torch
from dense_programs import SwinTransformer, VisionTransformer, ViTDet
from spectral import with_channels
from torch import nn

from bimkern.exporters.detectron2 import lazy_config, write_detectron2
from bimkern.exporters.mmpretrain import backbone_config, write_mmpretrain
from bimkern.exporters.trained import Trained
from bimkern.mim.model import MIM
from bimkern.models.encoder import WholeImages
from bimkern.models.swin_layers import resized_table
from bimkern.recipes import RECIPES
from bimkern.train.config.run import ConfigError

PROGRAMS = {"mmpretrain.VisionTransformer": VisionTransformer, "mmpretrain.SwinTransformer": SwinTransformer}


def trained(config):
    """A network whose every value is random, norms and biases too, so that no two tensors can be mistaken."""
    model = MIM(config.method).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, Trained(config, 7, model.state_dict())


def features(encoder, tokens, depth, size):
    view = WholeImages(encoder.config.level(0).grid(size, size))
    for layer in range(depth):
        tokens = encoder.run_layer(layer, tokens, view)
    return tokens


def pictures(encoder):
    return torch.randn(2, encoder.config.channels, *(encoder.config.image_size.height,) * 2)


@pytest.mark.parametrize("depth", [2, 4])
def test_vitdet_takes_a_vit(tmp_path, depth):
    model, run = trained(RECIPES["bim_vit_test"].config)
    write_detectron2(tmp_path / "vit.pth", run, depth)
    config, start = SimpleNamespace(backbone=SimpleNamespace(net={})), SimpleNamespace()
    exec(lazy_config(tmp_path / "vit.pth", run, depth), {"model": config, "train": start})
    net = ViTDet(**config.backbone.net)
    theirs = nn.ModuleDict({"backbone": nn.ModuleDict({"net": net})})
    theirs.load_state_dict(torch.load(start.init_checkpoint, weights_only=True)["model"], strict=True)
    images = pictures(model.encoder)
    without_class_token = model.encoder.embed(images)[:, 1:]
    torch.testing.assert_close(net(images), features(model.encoder, without_class_token, depth, images.shape[2]))
    assert config.pixel_mean == [123.675, 116.28, 103.53]
    assert config.pixel_std == [58.395, 57.12, 57.375]
    assert config.input_format == "RGB"


def of_mmpretrain(path, run, depth):
    """Build the backbone that a config names, with the weights that it starts from."""
    write_mmpretrain(path, run, depth)
    lines = {}
    exec(backbone_config(path, run, depth), lines)
    settings = lines["backbone"]
    start = settings.pop("init_cfg")
    theirs = PROGRAMS[settings.pop("type")](**settings).eval()
    weights = torch.load(start["checkpoint"], weights_only=True)["state_dict"]
    assert start["type"] == "Pretrained"
    assert all(name.startswith(start["prefix"]) for name in weights)
    theirs.load_state_dict({name.removeprefix(start["prefix"]): weights[name] for name in weights}, strict=True)
    return theirs, lines["preprocessing"]


@pytest.mark.parametrize("depth", [2, 4])
def test_mmpretrain_takes_a_vit(tmp_path, depth):
    model, run = trained(RECIPES["bim_vit_test"].config)
    theirs, preprocessing = of_mmpretrain(tmp_path / "vit.pth", run, depth)
    assert preprocessing == {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}
    images = pictures(model.encoder)
    tokens = features(model.encoder, model.encoder.embed(images), depth, images.shape[2])
    head = model.heads[model.method.taps.index(depth - 1)]
    torch.testing.assert_close(theirs(images), head.in_norm(tokens))


def test_mmpretrain_takes_a_swin(tmp_path):
    model, run = trained(small_swin.recipe(window=2))
    theirs, _ = of_mmpretrain(tmp_path / "swin.pth", run, 8)
    images = pictures(model.encoder)
    tokens = features(model.encoder, model.encoder.embed(images), 8, 64)
    torch.testing.assert_close(theirs(images), model.heads[0].in_norm(tokens), rtol=1e-4, atol=1e-5)


def test_tables_of_small_windows_are_enlarged_with_their_indices(tmp_path):
    """All windows have one size there, and mmpretrain deletes the index of a table that it resizes from the file."""
    model, run = trained(small_swin.recipe(window=4))
    write_mmpretrain(tmp_path / "swin.pth", run, 8)
    weights = torch.load(tmp_path / "swin.pth", weights_only=True)["state_dict"]
    name = "backbone.stages.3.blocks.1.attn.w_msa.relative_position_"
    small = model.encoder.layers[3].blocks[1].attn.relative_position_bias_table
    assert small.shape == (9, 4)
    assert torch.equal(weights[f"{name}bias_table"], resized_table(small.detach(), (2, 2), (4, 4)))
    assert weights[f"{name}index"].shape == (16, 16)


@pytest.mark.parametrize(
    ("write", "recipe", "message"),
    [
        (write_detectron2, "fastmim_swin_tiny_test", "detectron2's ViTDet has no network for SwinConfig"),
        (write_mmpretrain, "fastmim_cmt_test", "mmpretrain has no network for CMTConfig"),
    ],
)
def test_an_encoder_that_they_lack_is_refused(tmp_path, write, recipe, message):
    config = RECIPES[recipe].config
    run = Trained(config, 7, MIM(config.method).state_dict())
    with pytest.raises(ConfigError, match=f"{message}; --format bimkern takes every encoder"):
        write(tmp_path / "out.pth", run, config.method.encoder.depth)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("channels", "format"), [(1, "L"), (3, "RGB"), (4, None)])
def test_programs_read_images_of_the_channels_that_the_encoder_has(tmp_path, channels, format):
    config = RECIPES["mae_vit_test"].config
    _, run = trained(config if channels == 3 else with_channels(config, channels))
    model, start, lines = SimpleNamespace(backbone=SimpleNamespace(net={})), SimpleNamespace(), {}
    text = lazy_config(tmp_path / "vit.pth", run, 4)
    exec(text, {"model": model, "train": start})
    assert getattr(model, "input_format", None) == format
    assert len(model.pixel_mean) == len(model.pixel_std) == model.backbone.net["in_chans"] == channels
    assert ("# images of 4 channels need a reader of their own" in text) == (channels == 4)
    text = backbone_config(tmp_path / "vit.pth", run, 4)
    exec(text, {}, lines)
    assert ("channels need a loader of their own" in text) == (channels != 3)
    assert len(lines["preprocessing"]["mean"]) == channels
    assert lines["preprocessing"].get("bgr_to_rgb", False) == (channels == 3)  # others have no such order

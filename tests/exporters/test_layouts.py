"""Exported weights under the names of other programs: those programs take them and compute the same."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from interop import import_or_skip
from PIL import Image
from spectral import with_channels

from bimkern.exporters.autoencoder import read_autoencoder
from bimkern.exporters.hf import write_hf
from bimkern.exporters.mae_program import program_weights
from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained
from bimkern.mim.model import IMAGENET_STD, MIM
from bimkern.models.layers import set_compute_dtype
from bimkern.models.pos_embed import sincos_table
from bimkern.ops import keep_to_mask, masked_loss, pixel_targets, random_keep
from bimkern.recipes import RECIPES

TAPS = [("mae_vit_test", 4, 3), *(("bim_vit_test_growing", depth, 3) for depth in (1, 2, 3, 4))]
every_tap = pytest.mark.parametrize(
    ("recipe", "depth", "channels"), [*TAPS, ("mae_vit_test", 4, 1), ("bim_vit_test_growing", 2, 5)]
)


def trained(recipe, channels=3):
    """A network whose every value is random, norms and biases too, so that no two tensors can be mistaken."""
    config = with_channels(RECIPES[recipe].config, channels)
    model = MIM(config.method)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, Trained(config, 7, model.state_dict())


def in_double(model):
    set_compute_dtype(model, torch.float64)
    return model.double().eval()


def sample(model, num_keep, batch=3):
    size, N = model.method.encoder.image_size.height, math.prod(model.method.encoder.grid)
    images = torch.randint(0, 256, (batch, model.method.encoder.channels, size, size), dtype=torch.uint8)
    seed = int(torch.randint(2**31, ()))
    return images, random_keep(torch.arange(batch), N, num_keep, seed=seed)


def mae_program(run, depth):
    return program_weights(read_autoencoder(run, depth, "mae-program"))


def encode(model, images, keep, depth):
    """The kept tokens after `depth` layers, as its head takes them: [B, 1+K, D]."""
    tokens = model.encoder.embed_visible(model.colors.normalize(images), keep)
    for layer in model.encoder.blocks[:depth]:
        tokens = layer(tokens)
    return tokens


def head_of(model, depth):
    return model.heads[model.method.taps.index(depth - 1)]


@every_tap
def test_timm_computes_the_same_features(tmp_path, recipe, depth, channels):
    timm = import_or_skip("timm")
    model, run = trained(recipe, channels)
    write_timm(tmp_path, run, depth)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).double().eval()

    in_double(model)
    images, everything = sample(model, math.prod(model.method.encoder.grid))
    pixels = model.colors.normalize(images)
    ours = head_of(model, depth).in_norm(encode(model, images, everything, depth))
    torch.testing.assert_close(theirs.forward_features(pixels), ours)
    torch.testing.assert_close(theirs(pixels), ours[:, 1:].mean(1))


def test_timm_adds_a_classifier_and_takes_other_images(tmp_path):
    timm = import_or_skip("timm")
    _, run = trained("bim_vit_test_growing")
    write_timm(tmp_path, run, 2)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=10, img_size=64)
    assert torch.equal(theirs.blocks[1].mlp.fc1.weight, run.weights["encoder.blocks.1.mlp.fc1.weight"])
    assert torch.equal(theirs.norm.weight, run.weights["heads.1.in_norm.weight"])
    assert theirs(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("mae_vit_base", "vit_base_patch16_224"),
        ("mae_vit_large", "vit_large_patch16_224"),
        ("mae_vit_huge", "vit_huge_patch14_224"),
    ],
)
def test_the_classifier_is_all_that_timm_misses(recipe, name):
    timm = import_or_skip("timm")
    with torch.device("meta"):
        model, theirs = MIM(RECIPES[recipe].config.method), timm.create_model(name).state_dict()
    encoder, run = model.method.encoder, Trained(RECIPES[recipe].config, 7, model.state_dict())
    ours = run.backbone(encoder.depth, encoder.layout("timm"))
    shapes = {key: list(tensor.shape) for key, tensor in theirs.items() if key not in ("head.weight", "head.bias")}
    assert {key: list(tensor.shape) for key, tensor in ours.items()} == shapes


def noise_that_keeps(keep, num_tokens):
    """Noise whose smallest values, in their order, are those of the kept tokens: [B, N]."""
    noise = 1 + torch.rand(len(keep), num_tokens)
    return noise.scatter(1, keep, torch.linspace(0, 0.5, keep.shape[1]).expand(keep.shape))


@every_tap
def test_transformers_computes_the_same_features_and_loss(tmp_path, recipe, depth, channels):
    transformers = import_or_skip("transformers")
    model, run = trained(recipe, channels)
    write_hf(tmp_path / "hf", run, depth)
    theirs, info = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info  # missing, unexpected and mismatched keys, and errors
    assert theirs.config.norm_pix_loss

    in_double(model)
    N, stage = math.prod(model.method.encoder.grid), model.method.taps.index(depth - 1)
    images, keep = sample(model, model.method.masker.entering(model.method.encoder.grid, model.num_stages)[stage])
    pixels = model.colors.normalize(images)
    tokens = encode(model, images, keep, depth)
    prediction = head_of(model, depth)(tokens, keep, model.method.encoder.grid)
    masked = keep_to_mask(keep, N).double()
    loss = masked_loss(prediction, pixel_targets(pixels, model.method.encoder.patch, True), masked)

    theirs.double().eval()
    noise = noise_that_keeps(keep, N)
    features = theirs.vit(pixels, noise=noise).last_hidden_state
    torch.testing.assert_close(features, head_of(model, depth).in_norm(tokens))
    output = theirs(pixels, noise=noise)
    assert torch.equal(output.mask.double(), masked)
    torch.testing.assert_close(output.logits, prediction)
    torch.testing.assert_close(output.loss, loss)


def test_transformers_gets_every_number(tmp_path):
    """Each one is set apart from the default of transformers, which would otherwise hide that it is missing."""
    transformers = import_or_skip("transformers")
    _, run = trained("bim_vit_test_growing")
    write_hf(tmp_path / "hf", run, 2)
    saved = json.loads((tmp_path / "hf" / "config.json").read_text())
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert {key: getattr(config, key) for key in saved} == saved
    assert (saved["num_hidden_layers"], saved["mask_ratio"], saved["layer_norm_eps"]) == (2, 0.7, 1e-6)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_timm_and_transformers_prepare_images_as_training_does(tmp_path, interpolation):
    """Nothing of it is a default of theirs: timm would take 224 px and 0.5, transformers 0.5 and bilinear."""
    timm, transformers = import_or_skip("timm"), import_or_skip("transformers")
    model, run = trained("mae_vit_test")
    run = replace(run, config=replace(run.config, augment=replace(run.config.augment, interpolation=interpolation)))
    write_timm(tmp_path / "timm", run, 4)
    write_hf(tmp_path / "hf", run, 4)

    photo = Image.fromarray(torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8).numpy())
    resampling = Image.Resampling[interpolation.upper()]

    def prepared(picture):
        return model.colors.normalize(torch.from_numpy(np.array(picture)).permute(2, 0, 1))

    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    cropped = photo.resize((48, 36), resampling).crop((8, 2, 40, 34))  # 32 of a short side of 32 / 0.875
    torch.testing.assert_close(transform(photo), prepared(cropped), rtol=1e-5, atol=1e-5)

    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    pixels = processor(images=photo, return_tensors="pt")["pixel_values"][0]
    difference = (pixels - prepared(photo.resize((32, 32), resampling))).abs()  # one level: torch resizes, not Pillow
    assert difference.max() < 1.5 / 255 / min(IMAGENET_STD)


def published_vit_base():
    """Names and shapes of the MAE program's ViT-B, from its paper's sizes: 12 layers 768 wide, 8 layers 512 wide."""

    def layer(name, width):
        return {
            **{f"{name}.{norm}.{part}": [width] for norm in ("norm1", "norm2") for part in ("weight", "bias")},
            f"{name}.attn.qkv.weight": [3 * width, width],
            f"{name}.attn.qkv.bias": [3 * width],
            f"{name}.attn.proj.weight": [width, width],
            f"{name}.attn.proj.bias": [width],
            f"{name}.mlp.fc1.weight": [4 * width, width],
            f"{name}.mlp.fc1.bias": [4 * width],
            f"{name}.mlp.fc2.weight": [width, 4 * width],
            f"{name}.mlp.fc2.bias": [width],
        }

    shapes = {
        "cls_token": [1, 1, 768],
        "pos_embed": [1, 197, 768],
        "patch_embed.proj.weight": [768, 3, 16, 16],
        "patch_embed.proj.bias": [768],
        "norm.weight": [768],
        "norm.bias": [768],
        "mask_token": [1, 1, 512],
        "decoder_pos_embed": [1, 197, 512],
        "decoder_embed.weight": [512, 768],
        "decoder_embed.bias": [512],
        "decoder_norm.weight": [512],
        "decoder_norm.bias": [512],
        "decoder_pred.weight": [768, 512],
        "decoder_pred.bias": [768],
    }
    for i in range(12):
        shapes |= layer(f"blocks.{i}", 768)
    for i in range(8):
        shapes |= layer(f"decoder_blocks.{i}", 512)
    return shapes


def test_the_mae_program_finds_its_names_and_shapes():
    with torch.device("meta"):
        weights = MIM(RECIPES["mae_vit_base"].config.method).state_dict()
    theirs = mae_program(Trained(RECIPES["mae_vit_base"].config, 7, weights), 12)
    assert {name: list(tensor.shape) for name, tensor in theirs.items()} == published_vit_base()


def from_mae_program(name):
    """Our name, after the cut, for one of theirs."""
    if name.startswith("norm."):
        return f"head.in_{name}"
    if name == "mask_token" or name.startswith("decoder_"):
        return f"head.{name.removeprefix('decoder_')}"
    return f"encoder.{name.replace('.proj', '', 1) if name.startswith('patch_embed') else name}"


@every_tap
def test_the_mae_program_finds_every_value(recipe, depth, channels):
    model, run = trained(recipe, channels)
    theirs = mae_program(run, depth)
    for name in ("pos_embed", "decoder_pos_embed"):
        table = theirs.pop(name)
        assert not table[:, 0].any()
        assert torch.equal(table[0, 1:], sincos_table(32, (4, 4)))
    back = {from_mae_program(name): tensor for name, tensor in theirs.items()}
    assert back.keys() == run.cut(depth).keys()
    head, encoder = head_of(model, depth).state_dict(), model.encoder.state_dict()
    for name, tensor in back.items():
        part, _, rest = name.partition(".")
        assert torch.equal(tensor, (encoder if part == "encoder" else head)[rest]), name


def test_a_cut_holds_its_layers_and_its_head_alone():
    _, run = trained("bim_vit_test")
    names = run.cut(2)
    assert {name.split(".")[2] for name in names if name.startswith("encoder.blocks.")} == {"0", "1"}
    assert torch.equal(names["head.in_norm.weight"], run.weights["heads.1.in_norm.weight"])
    assert not [name for name in names if name.startswith("heads.")]

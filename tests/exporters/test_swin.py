"""A Swin goes to timm: strictly loaded, with equal features, and layers that were not trained with random values."""

import json
from dataclasses import replace

import pytest
import small_swin
import torch
from interop import import_or_skip
from PIL import Image
from safetensors.torch import load_file
from small_swin import SMALL

from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained
from bimkern.importers.initialize import read_initial_weights
from bimkern.mim.model import MIM
from bimkern.models.encoder import WEIGHTS_FILE, WholeImages
from bimkern.models.exported import load_encoder
from bimkern.models.swin import SwinConfig
from bimkern.recipes import RECIPES

timm = import_or_skip("timm")
WHOLE = (2, 2, 2, 2)
GROWING = {"window": 14, "window_image_size": 224, "image_size": 192}


def trained(**changes):
    """A network whose norms and tables are not those of a new one, of a recipe with a small Swin."""
    config = small_swin.recipe(**{"window": 4} | changes)
    model = MIM(config.method).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or name.endswith("table"):
                parameter.add_(torch.randn_like(parameter) / 4)
    return model, Trained(config, 7, model.state_dict())


def features(encoder, images):
    """The tokens after the last layer."""
    tokens = encoder.embed(images)
    for layer in range(encoder.config.depth):
        tokens = encoder.run_layer(layer, tokens, WholeImages(encoder.config.level(0).grid(*images.shape[2:])))
    return tokens


@pytest.mark.parametrize(("last", "parts"), [(0, ["layers.3.blocks"]), (1, ["layers.3.blocks.1"])])
def test_layers_left_to_fine_tuning_are_random_in_a_whole_network(tmp_path, last, parts):
    """FastMIM, table 1c: the same random values in each export of a run, listed in its config.json."""
    model, run = trained(depths=(*WHOLE[:3], last), whole_depths=WHOLE)
    for name in ("first", "second"):
        write_timm(tmp_path / name, run, model.method.encoder.depth)
        torch.rand(1)
    weights, again = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("first", "second"))
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    description = json.loads((tmp_path / "first" / "config.json").read_text())
    assert (description["model_args"]["depths"], description["random"]) == (list(WHOLE), parts)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'first'}", pretrained=True).eval()  # strict
    drawn = {name: tensor for name, tensor in theirs.state_dict().items() if name.startswith(f"{parts[0]}.")}
    assert weights.keys() == theirs.state_dict().keys()
    assert drawn.keys() == weights.keys() - {
        *(name for name, _ in model.encoder.named_parameters()), "norm.weight", "norm.bias",
    }  # fmt: skip
    assert all(0.01 < tensor.std() < 0.03 for tensor in drawn.values() if tensor.dim() == 2)
    assert torch.equal(theirs.norm.weight, model.heads[0].in_norm.weight)
    images = torch.randn(1, 3, 64, 64)
    ours = features(model.encoder, images)
    found = theirs.layers[3].downsample(theirs.layers[:3](theirs.patch_embed(images)))
    found = theirs.layers[3].blocks[:last](found)
    torch.testing.assert_close(ours, found.flatten(1, 2))
    loaded = load_encoder(tmp_path / "first").eval()
    assert loaded.config == model.method.encoder
    assert torch.equal(features(loaded, images), ours)


def test_a_cut_run_begins_with_its_export_or_a_whole_network(tmp_path):
    model, run = trained(depths=(2, 2, 2, 1), whole_depths=WHOLE)
    _, whole = trained()
    for weights in (run, whole):
        write_timm(tmp_path, weights, weights.config.method.encoder.depth)
        init = read_initial_weights(run.config, tmp_path)
        assert {f"encoder.{name}" for name in model.encoder.state_dict()} <= init.tensors.keys()
        assert all(torch.equal(init.tensors[name], weights.weights[name]) for name in init.tensors)
        assert {name.split(".blocks.1.")[0] for name in init.report["left"]} == {"layers.3"}


def test_layers_below_the_last_are_exported_alone():
    config = SwinConfig(**SMALL | {"depths": (2, 2, 2, 1), "whole_depths": WHOLE})
    assert config.cut(7) is config
    cut = config.cut(6)
    assert cut == replace(config, depths=(2, 2, 2, 0), whole_depths=None)
    assert not cut.layout("timm").random


@pytest.mark.parametrize("changes", [{"window": 7, "image_size": 224}, {"window": 14, "image_size": 224}, GROWING])
def test_timm_computes_the_same_features_at_224_pixels(tmp_path, changes):
    """Where windows grow with images, as in FastMIM-P, that is the size which tables are made for."""
    model, run = trained(**changes)
    write_timm(tmp_path, run, model.method.encoder.depth)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()  # strict
    assert [stage.blocks[0].window_size[0] for stage in theirs.layers] == [changes["window"]] * 3 + [7]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    pixels = torch.randint(0, 256, (300, 260, 3), dtype=torch.uint8)
    images = transform(Image.fromarray(pixels.numpy()))[None]
    assert images.shape == (1, 3, 224, 224)
    tokens = model.heads[0].in_norm(features(model.encoder, images))
    torch.testing.assert_close(tokens, theirs.forward_features(images).flatten(1, 2))
    torch.testing.assert_close(tokens.mean(dim=1), theirs(images))
    assert torch.equal(features(load_encoder(tmp_path).eval(), images), features(model.encoder, images))


@pytest.mark.parametrize("depth", [22, 23])
def test_recipes_of_table_1c_fill_a_swin_base(depth):
    config = RECIPES[f"fastmim_swin_base_depth{depth}"].config
    encoder = config.method.encoder
    layout = encoder.layout("timm")
    with torch.device("meta"):
        theirs = timm.create_model(
            "swin_base_patch4_window7_224", img_size=128, window_size=4, depths=(2, 2, 18, 2), num_classes=0
        )
        ours = Trained(config, 7, MIM(config.method).state_dict()).backbone(depth, layout)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.items()} == shapes
    assert encoder.depths == (2, 2, 18, depth - 22)

"""Backbones of timm go back to timm whole: strictly loaded, with equal features, what was cut with random values."""

import json
from dataclasses import replace

import pytest
import torch
from interop import import_or_skip
from safetensors.torch import load_file, save_file
from small_backbones import OF_TIMM, SIZE, backbone, method, network, sample

from bimkern.exporters.own import write_backbones, write_own
from bimkern.exporters.timm import write_timm
from bimkern.exporters.trained import Trained
from bimkern.importers.initialize import read_initial_weights
from bimkern.mim.model import MIM
from bimkern.models.encoder import WEIGHTS_FILE, WholeImages
from bimkern.models.exported import BackboneError, load_encoder
from bimkern.models.timm_backbone import TimmBackboneConfig
from bimkern.recipes import RECIPES
from bimkern.train.config.run import ConfigError

timm = import_or_skip("timm")
of_timm = pytest.mark.parametrize("family", OF_TIMM)
NORMS = {"twins": "norm.", "swin": "norm.", "vit": "fc_norm.", "convnext": "head.norm.", "convnextv2": "head.norm."}
NORMALIZED = {"twins", "swin"}  # by timm's forward_features


def config_of(method):
    return replace(RECIPES["fastmim_vit_test"].config, recipe="small", method=method)


def trained(config, **pieces):
    model = network(method(config, **pieces)).eval()
    return model, Trained(config_of(model.method), 7, model.state_dict())


def features(encoder, images):
    """The tokens after the last layer."""
    tokens = encoder.embed(images)
    for layer in range(encoder.config.depth):
        tokens = encoder.run_layer(layer, tokens, WholeImages(encoder.config.level(0).grid(*images.shape[2:])))
    return tokens


@of_timm
def test_timm_computes_the_same_features(tmp_path, family):
    model, run = trained(backbone(family))
    write_timm(tmp_path, run, model.method.encoder.depth)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()  # strict
    assert theirs.load_state_dict(load_file(tmp_path / WEIGHTS_FILE), strict=True)
    images = torch.randn(2, 3, SIZE, SIZE)
    tokens = features(model.encoder, images)
    if norm := NORMS.get(family):
        assert torch.equal(theirs.state_dict()[f"{norm}weight"], model.heads[0].in_norm.weight)
        assert theirs.get_submodule(norm[:-1]).eps == model.heads[0].in_norm.eps
    found = theirs.forward_intermediates(images, intermediates_only=True)[-1]
    torch.testing.assert_close(tokens, found.flatten(2).mT if found.shape[1] != found.shape[2] else found.flatten(1, 2))
    if family in NORMALIZED:
        normalized = theirs.forward_features(images).reshape(2, -1, tokens.shape[2])
        torch.testing.assert_close(model.heads[0].in_norm(tokens), normalized)
    assert theirs(images).isfinite().all()


@of_timm
@pytest.mark.parametrize("write", [write_timm, write_own])
def test_an_exported_backbone_is_read_back(tmp_path, family, write):
    model, run = trained(backbone(family))
    write(tmp_path, run, model.method.encoder.depth)
    loaded = load_encoder(tmp_path).eval()
    assert loaded.config == model.method.encoder
    images = torch.randn(1, 3, SIZE, SIZE)
    assert torch.equal(features(loaded, images), features(model.encoder, images))


@pytest.mark.parametrize(
    ("family", "changes", "cut"),
    [
        ("convnext", {"depths": (1, 1, 2, 0)}, "stages.3.blocks"),
        ("convnext", {"depths": (1, 1, 1, 1)}, "stages.2.blocks.1"),
        ("pvt", {"depths": (1, 1, 2, 0)}, "stages.3.blocks"),
        ("twins", {"depths": (1, 1, 2, 0)}, "blocks.3"),
        ("swin", {"depths": (1, 1, 2, 0)}, "layers.3.blocks"),
        ("resnet", {"num_levels": 3}, "layer4"),
    ],
)
def test_what_was_cut_is_drawn(tmp_path, family, changes, cut):
    """FastMIM, table 1c: the dropped blocks are random for fine-tuning, the same ones for each export of a run."""
    config = replace(backbone(family), **changes)
    model, run = trained(config)
    assert not any(f".{cut}." in name for name in model.state_dict())
    for name in ("first", "second"):
        write_timm(tmp_path / name, run, config.depth)
    weights = load_file(tmp_path / "first" / WEIGHTS_FILE)
    whole = timm.create_model(f"local-dir:{tmp_path / 'first'}", pretrained=True)
    assert weights.keys() == whole.state_dict().keys()
    drawn = {name for name in weights if name.startswith(f"{cut}.")}
    assert drawn
    assert any(weights[name].std() > 0 for name in drawn if weights[name].dim() > 1)
    again = load_file(tmp_path / "second" / WEIGHTS_FILE)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    images = torch.randn(1, 3, SIZE, SIZE)
    assert torch.equal(features(load_encoder(tmp_path / "first").eval(), images), features(model.encoder, images))


def test_every_tap_is_exported_for_timm(tmp_path):
    config = backbone("pvt")
    model = network(method(config, taps=(1, 3)))
    write_backbones(tmp_path, Trained(config_of(model.method), 7, model.state_dict()))
    for depth in (2, 4):
        folder = tmp_path / f"backbone-depth{depth:02d}"
        timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert json.loads((folder / "config.json").read_text())["architecture"] == "pvt_v2_b0"
        assert load_encoder(folder).config == config.cut(depth)


def test_what_timm_cannot_pool_is_one_line_and_exported_as_ours(tmp_path):
    """A pit pools its token alone, ours has none."""
    config = TimmBackboneConfig(name="pit_ti_224", image_size=64, model_args={"depth": (1, 1, 1)})
    model, run = trained(config)
    with pytest.raises(ConfigError, match="timm has no network for TimmBackboneConfig; --format bimkern takes every"):
        write_timm(tmp_path / "timm", run, 1)
    write_backbones(tmp_path, run)
    loaded = load_encoder(tmp_path / "backbone-depth01").eval()
    images = torch.randn(1, 3, SIZE, SIZE)
    assert torch.equal(features(loaded, images), features(model.encoder, images))


@of_timm
@pytest.mark.parametrize("layout", ["timm", "bimkern", "published"])
def test_a_run_begins_with_a_backbone(tmp_path, family, layout):
    config = backbone(family)
    model, run = trained(config)
    path = tmp_path / WEIGHTS_FILE
    if layout == "published":  # what timm itself saves, with a classifier
        size = {"img_size": SIZE} if family in ("swin", "vit") else {}
        whole = timm.create_model(config.name, **config.model_args, **size)
        theirs, names = whole.state_dict(), config.layout("timm")
        save_file(theirs, path)
        expected = {name: theirs[names.name(name)] for name in model.encoder.state_dict()}
    else:
        (write_timm if layout == "timm" else write_own)(tmp_path, run, config.depth)
        expected = model.encoder.state_dict()
    init = read_initial_weights(run.config, path)
    assert all(torch.equal(init.tensors[f"encoder.{name}"], tensor) for name, tensor in expected.items())
    assert not [name for name in init.report["random"] if name.startswith("encoder.")]


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path):
    _, run = trained(backbone("convnext"))
    write_timm(tmp_path, run, 4)
    messages = {"resnet": "holds no weights of such an encoder; it names", "convnextv2": "the encoder differs: "}
    for family, message in messages.items():
        with pytest.raises(ConfigError, match=message) as error:
            read_initial_weights(config_of(method(backbone(family))), tmp_path)
        assert "\n" not in str(error.value)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    description = json.dumps({"type": "TimmBackboneConfig", "name": "resnet10t", "image_size": 64})
    save_file(weights, tmp_path / "other.safetensors", metadata={"encoder": description})
    with pytest.raises(BackboneError, match="it is no such backbone") as error:
        load_encoder(tmp_path / "other.safetensors")
    assert "\n" not in str(error.value)


def test_statistics_of_batch_norms_are_exported(tmp_path):
    model, _ = trained(backbone("resnet"))
    model.train()
    batch = sample(model)
    model.encode(0, batch.images, batch.views[0])
    write_timm(tmp_path, Trained(config_of(model.method), 7, model.state_dict()), 4)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    assert weights["bn1.num_batches_tracked"] == 1
    assert torch.equal(weights["bn1.running_mean"], model.encoder.state_dict()["embedding.bn1.running_mean"])
    assert weights["bn1.running_mean"].abs().max() > 0


def test_a_heads_norm_adds_what_timms_does():
    assert MIM(method(backbone("swin"))).heads[0].in_norm.eps == 1e-5
    assert MIM(method(backbone("convnext"))).heads[0].in_norm.eps == 1e-6

"""Backbones of timm as encoders: the same features as timm's own networks, on every family of them."""

import sys

import pytest
import torch
from interop import import_or_skip
from small_backbones import ALL, OF_TIMM, SIZE, KeepGradients, backbone, method, network, sample
from torch._subclasses.fake_tensor import FakeTensorMode

from bimkern.mim.flow import Local, StepOptions
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.masking.units import TokenReplace
from bimkern.models import timm_backbone
from bimkern.models.encoder import WholeImages
from bimkern.models.layers import other_dtype_layers, set_compute_dtype
from bimkern.models.timm_backbone import TimmBackboneConfig
from bimkern.pieces import from_json, to_json

timm = import_or_skip("timm")
of_timm = pytest.mark.parametrize("family", OF_TIMM)
every_family = pytest.mark.parametrize("family", ALL)
PATCHWISE = {"convnext", "convnextv2", "swin"}


def levels(encoder, images):
    """Yield the tokens of the embedding and of every layer."""
    tokens = encoder.embed(images)
    view = WholeImages(encoder.config.level(0).grid(*images.shape[2:]))
    yield tokens
    for layer in range(encoder.config.depth):
        tokens = encoder.run_layer(layer, tokens, view)
        yield tokens


def as_maps(tokens, level, size=SIZE):
    return tokens.mT.unflatten(2, level.grid(size, size))


@of_timm
def test_every_level_is_that_of_timms_feature_network(family):
    config = backbone(family)
    encoder = config.module(config).eval()
    theirs = timm.create_model(config.name, features_only=True, in_chans=3, **config.model_args, **sized(family))
    ours = encoder.state_dict()
    names = [name.split(".", 1 if name.startswith("embedding.") else 2)[-1].removeprefix("net.") for name in ours]
    theirs.load_state_dict(dict(zip(names, ours.values(), strict=True)))
    images = torch.randn(2, 3, SIZE, SIZE)
    expected = theirs.eval()(images)
    last = str(getattr(theirs, "output_fmt", "")) == "Format.NHWC"
    found = [as_maps(tokens, config.level(i)) for i, tokens in enumerate(levels(encoder, images))]
    found = found[-1:] if config.depth == 1 else found[-len(expected) :]
    for ours, theirs in zip(found, expected[-len(found) :], strict=True):
        torch.testing.assert_close(ours, theirs.movedim(3, 1) if last else theirs)


def sized(family):
    return {"img_size": SIZE} if family in ("swin", "vit") else {}


@every_family
def test_painted_pixels_are_the_color_itself_and_the_others_the_images(family):
    config = backbone(family)
    model = network(method(config))
    batch, seen = sample(model), []
    first = next(m for m in model.encoder.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    model.encode(0, batch.images, batch.views[0])
    color, masked = model.mask_embedding.mask_token.detach(), batch.views[0].masked_share((SIZE, SIZE)) > 0
    assert masked.float().mean() == 0.5
    expected = torch.where(masked, color, model.colors.normalize(batch.images))
    assert torch.equal(seen[0], expected)


@every_family
def test_masked_pixels_do_not_reach_the_encoder_and_the_color_learns(family):
    model = network(method(backbone(family)))
    batch = sample(model)
    view = batch.views[0]
    altered = torch.where(view.masked_share((SIZE, SIZE)) > 0, 255 - batch.images, batch.images)
    tokens = model.encode(0, batch.images, view)
    assert torch.equal(model.encode(0, altered, view), tokens)
    tokens.square().sum().backward()
    assert model.mask_embedding.mask_token.grad.abs().min() > 0
    assert all(p.grad is not None for p in model.encoder.parameters())


@of_timm
def test_a_token_replaces_patches_where_the_stem_mixes_none(family):
    masker = TokenReplace(ratio=0.5)
    if family not in PATCHWISE:
        with pytest.raises(
            ValueError, match=r"TokenReplace needs an encoder with embed_filled\(\), which TimmBackbone"
        ):
            method(backbone(family), masker=masker)
        return
    model = network(method(backbone(family), masker=masker))
    batch = sample(model)
    view = batch.views[0]
    altered = torch.where(view.masked_share((SIZE, SIZE)) > 0, 255 - batch.images, batch.images)
    tokens = model.mask_embedding(model.encoder, altered, view, model.mean, model.std)
    whole = model.encoder.embed(batch.images, model.mean, model.std)
    expected = torch.where(view.masked[..., None] > 0, model.mask_embedding.mask_token, whole)
    assert torch.equal(tokens, expected)


def test_patches_are_not_left_out():
    with pytest.raises(
        ValueError, match=r"RandomDrop needs an encoder with embed_visible\(\), which TimmPatchBackbone"
    ):
        method(backbone("convnext"), masker=RandomDrop(ratios=(0.75,)))


@every_family
@pytest.mark.parametrize("flow", [Local(), None], ids=str)
def test_every_level_can_be_read_and_trained(family, flow):
    config = backbone(family)
    taps = (0,) if config.depth == 1 else (0, config.depth - 1)
    model = network(method(config, taps, **({"flow": flow} if flow else {})))
    batch, frozen = sample(model), 2 if len(taps) == 2 else 1
    updates = [KeepGradients() for _ in model.method.flow.partition(model)]
    losses = model.method.flow.step(model, [batch], updates, StepOptions(frozen_groups=frozen))
    assert losses.isfinite().tolist() == [tap + 1 >= frozen for tap in taps]
    groups = model.layer_groups()
    assert {group.number for group in groups.values()} == set(range(config.depth + 1))
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {name for name, group in groups.items() if group.number >= frozen}


@pytest.mark.parametrize("family", ["convnext", "pvt", "twins", "swin", "resnet", "vit", "cmt"])
def test_images_may_change_their_size_and_be_rectangles(family):
    config = backbone(family)
    assert config.resized(128).image_size.height == 128
    model = network(method(config)).eval()
    for height, width in ((64, 64), (128, 128), (96, 64) if family != "swin" else (64, 128)):
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        (view,) = model.views(images, torch.arange(2), 1)
        tokens = model.encode(0, images, view)
        patch = config.level(config.depth).patch
        assert tokens.shape == (2, height // patch * (width // patch), config.level(config.depth).width)
        assert tokens.isfinite().all()


@every_family
def test_a_config_survives_json(family):
    config = backbone(family)
    assert from_json(to_json(config), type(config), "encoder") == config


@of_timm
def test_a_network_without_values_has_the_same_shapes(family):
    config = backbone(family)
    real = config.module(config).state_dict()
    with FakeTensorMode():
        fake = config.module(config).state_dict()
        for known in (timm_backbone._described, timm_backbone._whole_norm, timm_backbone._timm_layout):
            known.cache_clear()
        assert config.level(config.depth)
        assert config.norm_eps > 0
        assert config.layout("timm")
    with torch.device("meta"):
        meta = config.module(config).state_dict()
    for other in (fake, meta):
        assert {name: tensor.shape for name, tensor in other.items()} == {n: t.shape for n, t in real.items()}
    assert {tensor.device.type for tensor in fake.values()} == {"cpu"}


@every_family
def test_half_precision_reaches_every_product(family):
    model = network(method(backbone(family))).eval()
    batch = sample(model)
    exact = model.encode(0, batch.images, batch.views[0])
    set_compute_dtype(model, torch.bfloat16)
    rounded = model.encode(0, batch.images, batch.views[0])
    assert rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.1
    assert not other_dtype_layers(model.encoder)


@pytest.mark.parametrize("family", ["convnext", "pvt", "swin", "resnet"])
def test_the_first_levels_alone_compute_the_same(family):
    config = backbone(family)
    encoder, cut = config.module(config).eval(), config.cut(2)
    assert (cut.depth, cut.cut(1).depth, config.cut(config.depth)) == (2, 1, config)
    first = cut.module(cut).eval()
    state = encoder.state_dict()
    first.load_state_dict({name: state[name] for name in first.state_dict()})
    images = torch.randn(1, 3, SIZE, SIZE)
    for ours, theirs in zip(levels(first, images), levels(encoder, images), strict=False):
        assert torch.equal(ours, theirs)


def of(family="convnext", **changes):
    config = backbone(family)
    return {"name": config.name, "image_size": SIZE, "model_args": config.model_args} | changes


BAD = [
    ({"name": "convnxt_tiny"}, "timm has no 'convnxt_tiny'; did you mean convnext_tiny, "),
    ({"name": "no such network at all"}, r"; timm.list_models\(\) names all"),
    ({"name": "hf-hub:timm/resnet18.a1_in1k"}, "timm has no 'hf-hub:timm/resnet18.a1_in1k'; did you mean resnet18"),
    ({"name": "crossvit_tiny_240", "image_size": 240}, "image_size must be a multiple of 17 for crossvit_tiny_240, "),
    (of(image_size=100), "image_size must be a multiple of 32 for convnext_atto, got 100"),
    (of(image_size=0), "TimmBackboneConfig: image_size must be at least 1, got 0"),
    (of(channels=0), "TimmBackboneConfig: channels must be at least 1, got 0"),
    (of(num_levels=5), r"TimmBackboneConfig: num_levels must be in \[1, 4\], got 5"),
    (
        of(depths=(1, 1, 2, 2)),
        r"TimmBackboneConfig: depths must be at most those of convnext_atto, got \(1, 1, 2, 2\); ",
    ),
    (of("resnet", depths=(1, 1)), "timm cannot build resnet10t with .*unexpected keyword argument 'depths'"),
    (
        {"name": "nest_tiny", "image_size": "64x128"},
        r"timm cannot build nest_tiny with in_chans=3, img_size=\(64, 128\) \(Model only handles square inputs\)",
    ),
    (of(model_args={"color": 3}), "timm cannot build convnext_atto with in_chans=3, color=3 .*argument 'color'"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_what_cannot_be_is_one_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        TimmBackboneConfig(**given)
    assert "\n" not in str(error.value)


def test_images_that_cannot_change_are_one_line():
    fixed = TimmBackboneConfig(**of("vit", model_args=backbone("vit").model_args | {"dynamic_img_size": False}))
    message = r"vit_tiny_patch16_224 built for 64 pixels does not take images of 128 pixels \(Input height"
    with pytest.raises(ValueError, match=message):
        fixed.resized(128)


@pytest.mark.parametrize(
    ("name", "size", "widths"),
    [
        ("resnet18", "128x64", [64, 64, 128, 256, 512]),  # 64 maps of 32 x 16: as many to rows as rows to columns
        ("swin_tiny_patch4_window7_224", "96x192", [96, 96, 192, 384, 768]),  # 24 x 48 vectors of 96
    ],
)
def test_maps_of_a_rectangle_are_told_from_vectors(name, size, widths):
    config = TimmBackboneConfig(name=name, image_size=size)
    assert [config.level(depth).width for depth in range(config.depth + 1)] == widths


def test_a_network_without_maps_is_refused(monkeypatch):
    """Whatever timm may build one day."""
    monkeypatch.setattr(timm, "create_model", lambda name, **given: torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"resnet18 has no maps of features \(timm's feature_info\)"):
        TimmBackboneConfig(name="resnet18", image_size=96)


def test_a_missing_timm_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"backbones by name need timm: .*; pip install 'bimkern\[timm\]'"):
        TimmBackboneConfig(name="resnet18", image_size=160)


def test_a_description_is_made_once():
    before = timm_backbone._described.cache_info().misses
    assert TimmBackboneConfig(**of()) == backbone("convnext")
    assert timm_backbone._described.cache_info().misses == before

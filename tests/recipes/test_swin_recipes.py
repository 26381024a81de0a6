"""Recipes of Swin carry the papers' numbers, and predict what the papers say."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bimkern.mim.flow import Local
from bimkern.mim.model import MIM
from bimkern.mim.targets import HogTarget, PixelTarget
from bimkern.models.heads import DecoderConfig, LinearConfig
from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.recipes.localmim import LOCALMIM_RECIPES

SPARSE = ["greenmim_swin_base", "greenmim_swin_large", "localmim_swin_base", "localmim_swin_large", "bim_swin_base"]


def method_of(name):
    return RECIPES[name].config.method


@pytest.mark.parametrize("name", SPARSE)
def test_masks_leave_12_of_49_units(name):
    method = method_of(name)
    views = method.views(torch.arange(2), (56, 56), 0)
    assert method.masker.entering((56, 56), len(views)) == [768] * len(views)
    assert {view.keep.shape for view in views} == {(2, 768)}
    assert torch.equal(views[0].keep[0], views[0].keep[1])
    counts = [192, 48, 12, 12]
    assert [view.decoded.shape[1] for view in views] == (counts if len(views) == 4 else [12])


def test_masks_of_each_image_are_an_option(capsys):
    main(["greenmim_swin_base", "--set", "method.masker.type=RandomUnits", "--show"])
    assert '[method.masker]\ntype = "RandomUnits"\nratio = 0.75\nmask_unit = 8\n' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("greenmim_swin_base", [(49, 3072)]),
        ("localmim_swin_base", [(784, 54), (196, 54), (49, 54), (49, 54)]),
        ("localmim_swin_large_pixels", [(784, 192), (196, 768), (49, 3072), (49, 3072)]),
        ("bim_swin_base", [(784, 192), (196, 768), (49, 3072), (49, 3072)]),
        ("simmim_swin_base", [(36, 3072)]),
        ("fastmim_swin_base", [(16, 432)]),
        ("fastmim_swin_base_depth22", [(16, 432)]),
        ("fastmim_p_swin_large", [(36, 432)]),
    ],
)
def test_predictions_have_the_published_shapes(monkeypatch, name, shapes):
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # it asks for values
    method = method_of(name)
    side = method.encoder.image_size.height
    with FakeTensorMode():
        model = MIM(method)
        tokens = images = torch.empty(2, 3, side, side, dtype=torch.uint8)
        found = []
        for stage, view in enumerate(model.views(images, torch.empty(2, dtype=torch.int64), 0)):
            tokens = model.encode(stage, tokens, view)
            found.append(tuple(model.predict(stage, tokens, view).shape[1:]))
    assert found == shapes


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("greenmim_swin_base", [7, 7, 7, 7]),
        ("greenmim_swin_large", [14, 14, 14, 7]),
        ("localmim_swin_base", [7, 7, 7, 7]),
        ("localmim_swin_large", [14, 14, 14, 7]),
        ("simmim_swin_base", [6, 6, 6, 6]),
        ("simmim_swin_large", [12, 12, 12, 6]),
        ("fastmim_swin_base", [4, 4, 4, 4]),
        ("fastmim_swin_large", [8, 8, 8, 4]),
        ("fastmim_p_swin_large", [14, 14, 14, 7]),
    ],
)
def test_tables_are_of_the_published_windows(name, windows):
    encoder = method_of(name).encoder
    assert [encoder.table_window(stage) for stage in range(4)] == [(side, side) for side in windows]


@pytest.mark.parametrize(
    ("name", "undecayed"),
    [
        ("greenmim_swin_tiny_test", {"relative_position_bias_table", "mask_token"}),
        ("localmim_swin_tiny_test", {"relative_position_bias_table", "mask_token"}),
        ("simmim_swin_tiny_test", {"relative_position_bias_table", "mask_token"}),
        ("fastmim_swin_tiny_test", set()),
    ],
)
def test_tables_and_tokens_are_decayed_as_published(name, undecayed):
    config = RECIPES[name].config
    parameters = [(name, p) for name, p in MIM(config.method).named_parameters() if p.ndim > 1]
    assert {name.rpartition(".")[2] for name, p in parameters if not config.optim.decays(name, p)} == undecayed


def test_localmim_has_its_published_decoders():
    method = method_of("localmim_swin_base")
    heads = [method.head(stage) for stage in range(4)]
    assert [(head.width, head.depth, head.num_heads) for head in heads] == [
        (64, 1, 4), (128, 1, 4), (128, 1, 4), (128, 1, 4),
    ]  # fmt: skip
    assert method.target(3) == HogTarget(bins=18)
    assert method_of("localmim_swin_base_pixels").target(0) == PixelTarget(normalize=True)
    isolated = {recipe.name for recipe in LOCALMIM_RECIPES if isinstance(recipe.config.method.flow, Local)}
    assert isolated >= {"localmim_swin_base_isolated", "localmim_swin_large_isolated"}


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("greenmim_swin_base", DecoderConfig(width=512, depth=1, num_heads=16)),
        ("greenmim_swin_large", DecoderConfig(width=512, depth=1, num_heads=16)),
        ("fastmim_swin_base", DecoderConfig(width=256, depth=4, num_heads=8, positions=False)),
        ("fastmim_swin_large", DecoderConfig(width=512, depth=4, num_heads=16, positions=False)),
        ("fastmim_p_swin_large", DecoderConfig(width=512, depth=4, num_heads=16, positions=False)),
        ("simmim_swin_base", LinearConfig()),
    ],
)
def test_decoders_are_the_published_ones(name, decoder):
    assert method_of(name).heads == (decoder,)


def test_fastmim_p_grows_windows_with_images():
    config = RECIPES["fastmim_p_swin_large"].config
    assert [(phase.image_size.height, phase.share) for phase in config.phases] == [(128, 0.5), (160, 0.25), (192, 0.25)]
    windows = [config.method.encoder.windows((phase.image_size.height // 4,) * 2)[0] for phase in config.phases]
    assert windows == [8, 10, 12]


def test_a_decoder_of_swin_has_the_norm_of_its_encoder():
    assert MIM(method_of("greenmim_swin_tiny_test")).heads[0].in_norm.eps == 1e-5
    assert MIM(method_of("mae_vit_test")).heads[0].in_norm.eps == 1e-6

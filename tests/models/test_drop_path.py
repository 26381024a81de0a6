"""Drop path: rates, what is drawn and of what it depends, and what it does to branches."""

import pytest
import torch

from bimkern.models.cmt import CMTConfig
from bimkern.models.drop_path import DropPath, draw_paths, set_drop_path
from bimkern.models.encoder import WholeImages
from bimkern.models.swin import Swin, SwinConfig
from bimkern.models.vit import ViT, ViTConfig

CPU = torch.device("cpu")


def vit(depth=4):
    return ViT(ViTConfig(image_size=16, patch=8, width=16, depth=depth, num_heads=2))


def rates(encoder):
    return [module.rate for module in encoder.modules() if isinstance(module, DropPath)]


def scales(encoder):
    return [module.scale for module in encoder.modules() if isinstance(module, DropPath)]


def test_rates_rise_linearly_over_the_layers():
    encoder = vit()
    set_drop_path(encoder, 0.3)
    assert rates(encoder) == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    swin = Swin(SwinConfig(image_size=32, width=8, depths=(1, 2), num_heads=(1, 2), window=4))
    set_drop_path(swin, 0.2)
    assert rates(swin) == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2])


def test_draws_depend_on_the_image_alone():
    encoder = vit()
    set_drop_path(encoder, 0.5)
    ids = torch.arange(40) + (3 << 40)
    draw_paths(encoder, ids, 7, CPU)
    whole = scales(encoder)
    draw_paths(encoder, ids[11:20], 7, CPU)
    for part, all_of_it in zip(scales(encoder), whole, strict=True):
        assert part is all_of_it is None or torch.equal(part, all_of_it[11:20])
    draw_paths(encoder, ids, 8, CPU)
    assert not torch.equal(scales(encoder)[-1], whole[-1])


def test_as_many_images_skip_a_branch_as_its_rate_says_and_branches_differ():
    encoder = vit()
    set_drop_path(encoder, 0.5)
    draw_paths(encoder, torch.arange(20000), 0, CPU)
    first, second = scales(encoder)[-2:]
    for scale in (first, second):
        assert set(scale.tolist()) == {0.0, 2.0}
        assert scale.mean() == pytest.approx(1, abs=0.05)
    assert ((first > 0) == (second > 0)).double().mean() == pytest.approx(0.5, abs=0.02)
    assert scales(encoder)[0] is None


def test_a_dropped_image_passes_by_a_branch_and_others_are_scaled():
    encoder = vit(depth=2)
    set_drop_path(encoder, 0.5)
    draw_paths(encoder, torch.arange(16), 0, CPU)
    layer, tokens = encoder.blocks[1], torch.randn(16, 5, 16)
    first, second = (path.scale.view(-1, 1, 1) for path in (layer.drop_path1, layer.drop_path2))
    assert (first == 0).any()
    assert (first > 0).any()
    between = tokens + first * layer.attn(layer.norm1(tokens))
    expected = between + second * layer.mlp(layer.norm2(between))
    torch.testing.assert_close(layer(tokens), expected)
    encoder.eval()
    between = tokens + layer.attn(layer.norm1(tokens))
    assert torch.equal(layer(tokens), between + layer.mlp(layer.norm2(between)))


def test_without_a_rate_nothing_changes():
    encoder, images = vit(), torch.rand(3, 3, 16, 16)
    tokens, view = encoder.embed(images), WholeImages((2, 2))
    before = encoder.run_layer(3, tokens, view)
    set_drop_path(encoder, 0.0)
    draw_paths(encoder, torch.arange(3), 0, CPU)
    assert torch.equal(encoder.run_layer(3, tokens, view), before)


def test_an_encoder_without_such_branches_is_named():
    config = CMTConfig(widths=(8, 16, 32), depths=(1, 1, 1), num_heads=(1, 2, 4), reductions=(4, 2, 1), stem_width=8)
    encoder = config.module(config)
    set_drop_path(encoder, 0.0)
    with pytest.raises(ValueError, match=r"^drop_path must be 0, as CMT has no DropPath in its layers, got 0\.1$"):
        set_drop_path(encoder, 0.1)

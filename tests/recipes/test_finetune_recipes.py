"""Recipes of fine-tuning against the papers' table, and layer-wise rates against those of the published program."""

from dataclasses import replace

import pytest
import torch

from bimkern.mim.schedule import LayerGroup, resolve
from bimkern.models.swin import SWIN_BASE
from bimkern.recipes import RECIPES
from bimkern.recipes.finetuning import FINETUNE_RECIPES, finetuning
from bimkern.train.network import build_classifier
from bimkern.train.optim.layer_decay import decayed, layer_groups

# batch, learning rate of the whole batch, layer decay, drop path, epochs, warm-up, final learning rate
TABLE = {
    "mae_vit_base": (1024, 5e-4 * 4, 0.65, 0.1, 100, 5, 1e-6),
    "mae_vit_large": (1024, 1e-3 * 4, 0.75, 0.2, 50, 5, 1e-6),
    "mae_vit_huge": (1024, 1e-3 * 4, 0.75, 0.3, 50, 5, 1e-6),
    "bim_vit_base": (1024, 5e-4 * 4, 0.75, 0.1, 100, 5, 1e-6),
    "bim_vit_large": (1024, 1e-3 * 4, 0.75, 0.2, 50, 5, 1e-6),
    "bim_vit_huge": (1024, 1e-3 * 4, 0.75, 0.3, 50, 5, 1e-6),
    "localmim_vit_base": (1024, 4e-3, 0.75, 0.1, 100, 20, 1e-6),
    "localmim_vit_base_1600": (1024, 2e-3, 0.65, 0.1, 100, 20, 1e-5),
    "localmim_vit_large": (1024, 3e-3, 0.75, 0.2, 50, 5, 1e-6),
    "localmim_swin_base": (2048, 5e-3, 0.9, 0.1, 100, 20, 2.5e-7),
    "localmim_swin_base_400": (2048, 4e-3, 0.9, 0.1, 100, 20, 2.5e-7),
    "localmim_swin_base_pixels": (1024, 4e-3, 0.9, 0.1, 100, 20, 2.5e-7),
    "localmim_swin_large": (2048, 2e-3, 0.8, 0.3, 100, 20, 2.5e-7),
    "vitfreeze_vit_base": (1024, 4e-3, 0.75, 0.1, 100, 20, 1e-6),
    "fastmim_vit_base": (1024, 6e-4 * 4, 0.7, 0.1, 100, 5, 1e-6),
    "fastmim_swin_base": (1024, 1e-3 * 4, 0.8, 0.1, 100, 5, 1e-6),
    "fastmim_swin_large": (1024, 1e-3 * 4, 0.75, 0.3, 100, 5, 1e-6),
    "simmim_vit_base": (2048, 1.25e-3 * 4, 0.65, 0.1, 100, 20, 2.5e-7 * 4),
    "simmim_swin_base": (2048, 1.25e-3 * 4, 0.9, 0.1, 100, 20, 2.5e-7 * 4),
    "simmim_swin_base_800": (2048, 1.25e-3 * 4, 0.8, 0.1, 100, 20, 2.5e-7 * 4),
    "simmim_swin_large": (2048, 1.25e-3 * 4, 0.7, 0.2, 100, 20, 2.5e-7 * 4),
    "greenmim_swin_base": (1024, 1.25e-3 * 2, 0.9, 0.1, 100, 20, 2.5e-7 * 2),
    "greenmim_swin_large": (768, 1e-3 * 1.5, 0.8, 0.3, 100, 20, 3.5e-7 * 1.5),
    "maskfeat_vit_base": (512, 2e-3, 0.65, 0.1, 100, 20, 1e-6),
    "maskfeat_vit_large": (256, 1e-3, 0.75, 0.1, 50, 5, 1e-6),
}
POOLED_FIRST = {name for name in TABLE if "vit" in name or name.startswith("localmim_swin")}
# SEMANTICS of MAE's program, ViT-B with decay 0.65: from the embedding to the last layer.
GOLDEN = (
    *(0.0037, 0.00569, 0.00875, 0.01346, 0.02071, 0.03186, 0.04902),
    *(0.07542, 0.11603, 0.17851, 0.27463, 0.4225, 0.65, 1),
)


def test_every_recipe_is_in_the_table():
    assert FINETUNE_RECIPES.keys() == {"demo", *TABLE}


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_has_the_numbers_of_its_paper(name):
    config = FINETUNE_RECIPES[name].config
    peak = config.run.peak_lr
    schedule = resolve(config.schedule, config.run.epochs, peak)
    found = (config.run.batch_size, peak, config.layer_decay, config.drop_path, config.run.epochs)
    assert (*found, schedule.warmup * config.run.epochs, schedule.factor(1.0) * peak) == pytest.approx(TABLE[name])
    assert config.optim.betas == (0.9, 0.999)
    assert config.optim.weight_decay == 0.05
    assert config.optim.clip == (5.0 if name.startswith(("simmim", "greenmim")) else None)  # TRAIN.CLIP_GRAD there
    assert config.norm_first is (name not in POOLED_FIRST)
    assert config.encoder.image_size.height == 224
    assert (config.mixing.mixup, config.mixing.cutmix, config.mixing.smoothing) == (0.8, 1.0, 0.1)
    assert (config.augment.rand_augment, config.augment.erase_prob) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert config.crop.ratio == 224 / 256


@pytest.mark.parametrize("name", [name for name in TABLE if name in RECIPES])
def test_a_recipe_takes_the_encoder_of_the_pretraining_recipe_of_its_name(name):
    theirs = RECIPES[name].config.method.encoder.resized(224)
    ours = FINETUNE_RECIPES[name].config.encoder
    assert (type(ours), ours.width, ours.patch) == (type(theirs), theirs.width, theirs.patch)
    assert ours.depth == theirs.depth


def groups_of(config):
    """Return the layer groups and the parameters of the network of a recipe, which the demo leaves open."""
    encoder = config.encoder or RECIPES["demo"].config.method.encoder
    with torch.device("meta"):
        model = build_classifier(replace(config, encoder=encoder, mean=(0.5,) * 3, std=(0.5,) * 3, num_classes=9))
        model.train_positions()
    return layer_groups(model, model.encoder), dict(model.named_parameters())


def test_rates_of_a_vit_are_those_of_the_published_program():
    mae = FINETUNE_RECIPES["mae_vit_base"].config
    groups, parameters = groups_of(mae)
    assert groups.keys() == parameters.keys()
    for name, number in {
        "encoder.cls_token": 0,
        "encoder.positions.table": 0,
        "encoder.patch_embed.weight": 0,
        "encoder.blocks.0.attn.qkv.weight": 1,
        "encoder.blocks.11.mlp.fc2.bias": 12,
        "norm.weight": 13,
        "head.weight": 13,
    }.items():
        assert groups[name].number == number
    found = [decayed(mae.layer_decay, LayerGroup(number), 12) for number in range(14)]
    assert [round(factor, 5) for factor in found] == [pytest.approx(value, abs=5e-6) for value in GOLDEN]


def test_ids_of_a_swin_are_those_of_the_published_program():
    config = finetuning("swin", SWIN_BASE, base_lr=1e-3, layer_decay=0.9, drop_path=0.1, undecayed=())
    groups, _ = groups_of(config)
    for name, number in {
        "encoder.patch_embed.proj.weight": 0,
        "encoder.patch_embed.norm.weight": 0,
        "encoder.layers.0.blocks.0.norm1.weight": 1,
        "encoder.layers.0.blocks.1.norm1.weight": 2,
        "encoder.layers.1.downsample.reduction.weight": 2,  # with the last layer of the stage before
        "encoder.layers.1.blocks.0.norm1.weight": 3,
        "encoder.layers.2.downsample.norm.weight": 4,
        "encoder.layers.2.blocks.17.attn.relative_position_bias_table": 22,
        "encoder.layers.3.downsample.norm.weight": 22,
        "encoder.layers.3.blocks.1.mlp.fc1.weight": 24,
        "norm.weight": 25,
        "head.bias": 25,
    }.items():
        assert groups[name].number == number


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("mae_vit_base", {"encoder.positions.table", "encoder.cls_token"}),
        ("demo", {"encoder.positions.table", "encoder.cls_token"}),
        ("maskfeat_vit_base", set()),  # ZERO_DECAY_POS_CLS is false there
        ("maskfeat_vit_large", set()),
        ("localmim_swin_base", set()),
        ("fastmim_swin_base", set()),
        ("fastmim_swin_large", set()),
        ("simmim_vit_base", {"encoder.positions.table", "encoder.cls_token"}),
        ("simmim_swin_base", {"relative_position_bias_table"}),
        ("greenmim_swin_large", {"relative_position_bias_table"}),
    ],
)
def test_what_weight_decay_leaves_out(name, also):
    config = FINETUNE_RECIPES[name].config
    _, parameters = groups_of(config)
    found = {known for known, parameter in parameters.items() if not config.optim.decays(known, parameter)}
    tables = {known for known in parameters if known.endswith("relative_position_bias_table")}
    assert len(tables) == (24 if "swin" in name else 0)
    expected = tables if "relative_position_bias_table" in also else also
    assert found == {known for known, parameter in parameters.items() if parameter.ndim == 1} | expected

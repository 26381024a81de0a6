"""Recipes carry the papers' numbers."""

import pytest

from bimkern.mim.flow import EndToEnd, Local
from bimkern.mim.stages import equal_stages
from bimkern.recipes import RECIPES


def test_names():
    sizes = ("base", "large", "huge")
    published = {f"{kind}_vit_{size}" for kind in ("mae", "bim") for size in sizes}
    growing = {f"bim_vit_{size}_growing" for size in sizes}
    assert published | growing | {"demo"} <= RECIPES.keys()


@pytest.mark.parametrize(("name", "recipe"), RECIPES.items())
def test_a_recipe_has_a_name_and_a_summary(name, recipe):
    assert recipe.name == name
    assert recipe.summary


@pytest.mark.parametrize(
    ("size", "taps", "visible"),
    [("base", (2, 5, 8, 11), 49), ("large", (5, 11, 17, 23), 49), ("huge", (7, 15, 23, 31), 64)],
)
def test_bim_has_four_equal_stages_that_learn_alone(size, taps, visible):
    method = RECIPES[f"bim_vit_{size}"].config.method
    assert method.taps == taps
    assert isinstance(method.flow, Local)
    rows, columns = method.encoder.grid
    assert method.masker.entering((rows, columns), 4) == [visible] * 4


def test_the_growing_mask_leaves_68_58_39_29():
    method = RECIPES["bim_vit_large_growing"].config.method
    assert method.masker.entering((14, 14), 4) == [68, 58, 39, 29]


@pytest.mark.parametrize("name", ["mae_vit_base", "bim_vit_base"])
def test_optimization_is_that_of_the_papers(name):
    config = RECIPES[name].config
    assert config.run.peak_lr == pytest.approx(2.4e-3)
    assert (config.optim.betas, config.optim.weight_decay, config.optim.clip) == ((0.9, 0.95), 0.05, None)
    assert config.schedule.warmup_epochs == 40
    assert config.augment.scale == (0.2, 1.0)
    head = config.method.head(0)
    assert (head.width, head.depth, head.num_heads) == (512, 8, 16)
    assert config.method.target(0).normalize


def test_mae_is_one_stage_end_to_end():
    method = RECIPES["mae_vit_large"].config.method
    assert method.taps == (23,)
    assert isinstance(method.flow, EndToEnd)


def test_unequal_blocks_are_refused():
    with pytest.raises(ValueError, match="equal_stages: depth must be a multiple of num_stages=4, got 10"):
        equal_stages(10)

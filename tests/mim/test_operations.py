"""The operations of stages, and the cut into stages that take equally long."""

import random
from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from bench.flops import step_flops
from bimkern.mim.operations import balanced_taps, cut, stage_flops
from bimkern.mim.stages import equal_stages
from bimkern.recipes import RECIPES

METHOD = RECIPES["bim_vit_test"].config.method
GROWING = RECIPES["bim_vit_base_growing"].config.method


@pytest.mark.parametrize("recipe", ["bim_vit_test", "bim_vit_test_growing", "bim_hog_vit_test", "bim_swin_tiny_test"])
def test_the_stages_take_what_the_step_takes(recipe):
    method = RECIPES[recipe].config.method
    assert sum(stage_flops(method, stage) for stage in range(len(method.taps))) == step_flops(method)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 7])
def test_no_other_cut_has_a_smaller_largest_stage(num_stages):
    depth, generator = 7, random.Random(num_stages)
    layers = [generator.randint(1, 9) for _ in range(depth)]
    heads = [[generator.randint(1, 9) for _ in range(depth)] for _ in range(num_stages)]

    def cost(stage, first, tap):
        return sum(layers[first : tap + 1]) + heads[stage][tap]

    def highest(taps):
        return max(cost(k, first + 1, tap) for k, (first, tap) in enumerate(pairwise((-1, *taps))))

    every = [(*taps, depth - 1) for taps in combinations(range(depth - 1), num_stages - 1)]
    assert highest(cut(depth, num_stages, cost)) == min(map(highest, every))


def test_stages_that_are_equal_stay_so():
    method = replace(METHOD, encoder=replace(METHOD.encoder, depth=8), taps=(7,))
    assert balanced_taps(method, 4) == equal_stages(8, 4)


def test_a_mask_that_grows_gives_more_layers_to_later_stages():
    assert GROWING.taps == (2, 5, 8, 11)
    taps = balanced_taps(GROWING, 4)
    assert taps == (1, 3, 6, 11)
    costs = [[stage_flops(method, stage) for stage in range(4)] for method in (GROWING, replace(GROWING, taps=taps))]
    assert max(costs[1]) < 0.95 * max(costs[0])


def test_more_stages_than_layers():
    depth = METHOD.encoder.depth
    with pytest.raises(ValueError, match=f"{depth} layers cannot be cut into {depth + 1} stages"):
        balanced_taps(METHOD, depth + 1)

"""The learning rates of recipes, step by step, against the rules of the published programs."""

import pytest
from published_freezing import RATES

from bench.learning_rates import PUBLISHED, Ours, largest_difference
from bimkern.recipes import RECIPES


def test_the_rules_give_the_published_numbers():
    mae, localmim = PUBLISHED["mae_vit_base_1600"], PUBLISHED["localmim_vit_base_1600"]
    assert [mae.rate(epoch, 0) for epoch in (0, 20, 40, 820, 1600)] == pytest.approx([0, 1.2e-3, 2.4e-3, 1.2e-3, 0])
    assert [localmim.rate(epoch, 0) for epoch in (20, 40, 1600)] == pytest.approx([8e-4, 1.6e-3, 1e-6])
    for epoch, rates in RATES.items():
        found = [1e3 * PUBLISHED["vitfreeze_vit_base_published"].rate(epoch, group) for group in (0, 2, 6, 12)]
        assert found == pytest.approx(rates, abs=5e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_follow_them(name):
    """At steps from all of the run, with the last of warm-up and of the run."""
    ours, theirs = Ours(RECIPES[name].config), PUBLISHED[name]
    num_steps = ours.layout.num_steps
    assert ours.epoch(num_steps - 1) == pytest.approx(theirs.epochs, abs=0.004)
    after = next(step for step in range(num_steps) if ours.epoch(step) >= theirs.warmup)
    steps = {*range(0, num_steps, 1009), after - 1, after, num_steps - 1}
    assert largest_difference(name, steps) < 1e-6


@pytest.mark.parametrize("name", ["vitfreeze_vit_base_published", "vitfreeze_vit_base_unscaled"])
def test_heads_have_the_rate_of_the_layer_that_they_read(name):
    ours = Ours(RECIPES[name].config)
    for step in range(0, ours.layout.num_steps, 1009):
        for group in (2, 4, 10, 12):
            assert ours.rate(step, group, head=True) == ours.rate(step, group)

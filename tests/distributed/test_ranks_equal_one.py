"""Several ranks train what one process trains: the same images, crops and masks, with sums in another order."""

import json
from dataclasses import replace

import pytest
from rank_processes import RankProcesses
from safetensors.torch import load_file

from bimkern.recipes import RECIPES
from bimkern.train.run import run

RECIPE_NAMES = ["bim_vit_test", "mae_vit_test", "localmim_vit_test", "vitfreeze_vit_test", "fastmim_p_vit_test"]
OPTIONS = {"batch_size": 7, "micro_batch": 3, "workers": 0, "log_every": 1, "save_every": 10, "dist_timeout": 60}
STEPS = 20


def config_of(name, out, **options):
    config = RECIPES[name].config
    return replace(config, run=replace(config.run, out=out, **({"steps": STEPS} | OPTIONS | options)))


def train(names, folder, options):
    """Train some recipes, one after the other."""
    for name in names:
        run(config_of(name, folder / name, **options))


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    """Return the last weights, without the biases of keys: their gradients are rounding, which Adam scales up."""
    tensors = load_file(max((folder / "checkpoints").iterdir()) / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("qkv.bias"):
            tensor.view(3, -1)[1] = 0
    return tensors


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folders of runs of one process and of two ranks."""
    folder = tmp_path_factory.mktemp("trained")
    ranks = RankProcesses(train, 2, folder / "output", RECIPE_NAMES, folder / "two", {})
    train(RECIPE_NAMES, folder / "one", {})
    ranks.results()
    return folder / "one", folder / "two"


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_losses_and_weights_are_those_of_one_process(trained, name):
    one, two = (folder / name for folder in trained)
    assert [record["step"] for record in records(two)] == [*range(1, STEPS + 1)]
    for alone, shared in zip(records(one), records(two), strict=True):
        for part, other in zip(alone["loss_per_stage"], shared["loss_per_stage"], strict=True):
            assert (part is None) == (other is None)
            assert part is None or other == pytest.approx(part, rel=1e-5)
        for same in ("image_size", "lr", "epoch", "skipped_updates"):
            assert alone[same] == shared[same]
    alone, shared = weights(one), weights(two)
    assert alone.keys() == shared.keys()
    for key, tensor in alone.items():
        assert (tensor - shared[key]).norm() <= 1e-4 * tensor.norm(), key

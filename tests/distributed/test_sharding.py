"""Ranks that share out the optimizer's state train, save and resume as ranks do that each have all of it."""

import pytest
import torch
from finished_runs import killed, saved
from rank_processes import RankProcesses
from sharded_ranks import count_state, train_in_turn
from shared_runs import out_of_memory, records, train_with

from bimkern.train.config.run import ConfigError, RunConfig

pytestmark = pytest.mark.usefixtures("without_pictures")

SHARDS = ["none", "optimizer"]
RECIPES = ["bim_vit_test", "vitfreeze_vit_test"]  # an update for every stage; one for all, of which a part freezes
LENGTH = {"steps": 12, "save_every": 6}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder of runs on two ranks, sharded and not."""
    folder = tmp_path_factory.mktemp("trained")
    runs = [(name, folder / name / shard, {"shard": shard} | LENGTH) for name in RECIPES for shard in SHARDS]
    RankProcesses(train_in_turn, 2, folder / "output", runs).results()
    return folder


def assert_same(tensors, others):
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.shape == others[name].shape, name
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize("name", RECIPES)
def test_a_sharded_run_and_its_checkpoint_are_bit_for_bit_those_of_one_that_is_not(trained, name):
    whole, sharded = (trained / name / shard for shard in SHARDS)
    for record, other in zip(records(whole), records(sharded), strict=True):
        for same in ("step", "loss", "loss_per_stage", "lr", "skipped_updates"):
            assert record[same] == other[same]
    assert_same(saved(whole), saved(sharded))


def test_a_run_resumes_sharded_and_not_on_any_number_of_ranks(trained, tmp_path):
    whole, sharded = (trained / RECIPES[0] / shard for shard in SHARDS)
    on_two = [killed(folder, tmp_path / folder.name) for folder in (whole, sharded)]
    runs = [(RECIPES[0], folder, {"shard": "optimizer"} | LENGTH) for folder in on_two]
    RankProcesses(train_in_turn, 2, tmp_path / "output", runs).results()
    for folder in on_two:
        assert_same(saved(whole), saved(folder))
    alone = killed(sharded, tmp_path / "alone")
    train_in_turn([(RECIPES[0], alone, {"shard": "optimizer"} | LENGTH)])
    for record, other in zip(records(whole)[6:], records(alone)[6:], strict=True):
        assert other["loss_per_stage"] == pytest.approx(record["loss_per_stage"], rel=1e-5)


def test_a_rank_without_memory_keeps_the_others_company(trained, tmp_path):
    options = {"shard": "optimizer"} | LENGTH
    ranks = RankProcesses(
        train_with, 2, tmp_path / "output", out_of_memory, 1, RECIPES[0], tmp_path / "run", None, options
    )
    first, second = ranks.results()
    assert first == second
    for record, other in zip(records(trained / RECIPES[0] / "none"), records(tmp_path / "run"), strict=True):
        assert other["loss_per_stage"] == pytest.approx(record["loss_per_stage"], rel=1e-5)


def test_each_rank_has_its_share_of_the_state(tmp_path):
    sizes = [3, 1000, 1, 4096, 64, 65, 2048]
    found = RankProcesses(count_state, 4, tmp_path, sizes).results()
    assert sum(found) >= sum(sizes) * 8
    assert max(found) <= (sum(sizes) / 4 + 64 * len(sizes)) * 8


def test_lamb_is_refused():
    with pytest.raises(ConfigError, match="--shard optimizer: apex_lamb needs the norms of whole parameters; choose"):
        RunConfig(shard="optimizer", optimizer="apex_lamb")

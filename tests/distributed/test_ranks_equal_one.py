"""Several ranks train what one process trains: the same images, crops and masks, with sums in another order."""

import pytest
from rank_processes import RankProcesses
from safetensors.torch import load_file
from shared_runs import records, train

NAMES = ["bim_vit_test", "mae_vit_test", "localmim_vit_test", "vitfreeze_vit_test", "fastmim_p_vit_test"]
STEPS = 8
OFTEN = ["mae_vit_test"]  # which is fast: on four ranks, and for 20 steps


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
    ranks = RankProcesses(train, 2, folder / "output", NAMES, folder / "two", STEPS, pictures=True)
    train(NAMES, folder / "one", STEPS)
    ranks.results()
    return folder / "one", folder / "two"


def assert_equal_records(one, other):
    for alone, shared in zip(records(one), records(other), strict=True):
        for part, theirs in zip(alone["loss_per_stage"], shared["loss_per_stage"], strict=True):
            assert (part is None) == (theirs is None)
            assert part is None or theirs == pytest.approx(part, rel=1e-5)
        for same in ("step", "image_size", "lr", "epoch", "skipped_updates"):
            assert alone[same] == shared[same]


def assert_equal_weights(one, other):
    alone, shared = weights(one), weights(other)
    assert alone.keys() == shared.keys()
    for key, tensor in alone.items():
        assert (tensor - shared[key]).norm() <= 1e-4 * tensor.norm(), key


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_weights_are_those_of_one_process(trained, name):
    one, two = (folder / name for folder in trained)
    assert [record["step"] for record in records(two)] == [*range(1, STEPS + 1)]
    assert_equal_records(one, two)
    assert_equal_weights(one, two)


@pytest.mark.parametrize("name", OFTEN)
def test_twenty_steps_of_four_ranks_are_those_of_one_process(name, tmp_path):
    ranks = RankProcesses(train, 4, tmp_path / "output", OFTEN, tmp_path / "four", 20)
    train(OFTEN, tmp_path / "one", 20)
    ranks.results()
    assert len(records(tmp_path / "four" / name)) == 20
    assert_equal_records(tmp_path / "one" / name, tmp_path / "four" / name)
    assert_equal_weights(tmp_path / "one" / name, tmp_path / "four" / name)


@pytest.mark.parametrize("name", ["bim_vit_test", "mae_vit_test"])
def test_the_time_of_sums_is_in_the_metrics(trained, name):
    one, two = (records(folder / name) for folder in trained)
    assert "comm_wait" not in one[0]
    for record in two[2:]:
        assert 0 <= record["comm_wait"] <= record["comm_total"]
        each = record["comm_total_per_update"]
        assert max(each) <= record["comm_total"] + 1e-9  # those of stages overlap
        assert record["comm_total"] <= sum(each) + 1e-9
        assert len(record["comm_wait_per_update"]) == len(record["skipped_updates"])
        assert len(record["data_wait_per_rank"]) == 2
        assert record["rank_skew"] >= 0
    assert sum(record["comm_total"] for record in two) > 0

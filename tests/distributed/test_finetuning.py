"""Ranks of the command that fine-tunes."""

import numpy as np
import pytest
from labeled_stripes import write_stripes
from rank_processes import RankProcesses
from safetensors.torch import load_file
from saved_runs import make_run
from shared_runs import finetune_with, finetune_without_memory, records

EXPORTED = "exported/model.safetensors"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return labeled images, a run with an encoder, and the accuracy and losses of one process."""
    folder = tmp_path_factory.mktemp("alone")
    given = write_stripes(folder / "data"), folder / "backbone"
    make_run(folder / "backbone", "mae_vit_test")
    return given, finetune_with(*given, folder / "one"), losses(folder / "one")


def losses(folder):
    return np.asarray([record["loss"] for record in records(folder)])


def test_ranks_fine_tune_what_one_process_does(alone, tmp_path):
    given, accuracy, expected = alone
    ranks = RankProcesses(finetune_with, 2, tmp_path / "output", *given, tmp_path / "two")
    assert ranks.results() == [accuracy] * 2
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-5)


def test_ranks_that_share_out_layers_fine_tune_what_one_process_does(alone, tmp_path):
    given, accuracy, expected = alone
    ranks = RankProcesses(finetune_with, 2, tmp_path / "output", *given, tmp_path / "full", "full")
    assert ranks.results() == [accuracy] * 2
    assert losses(tmp_path / "full") == pytest.approx(expected, rel=1e-5)
    one, full = (load_file(folder / EXPORTED) for folder in (given[1].parent / "one", tmp_path / "full"))
    assert one.keys() == full.keys()
    for name, tensor in one.items():
        assert full[name].shape == tensor.shape
        if "qkv.bias" not in name:  # of keys, whose gradients are rounding
            assert (full[name] - tensor).norm() <= 1e-3 * tensor.norm(), name
    assert finetune_with(*given, tmp_path / "full") == accuracy  # which is finished: one process reads the checkpoint
    again = RankProcesses(finetune_with, 2, tmp_path / "again", *given, given[1].parent / "one", "full")
    assert again.results() == [accuracy] * 2


@pytest.mark.parametrize("number", [0, 2])
def test_a_rank_without_memory_has_all_take_smaller_micro_batches(alone, tmp_path, number):
    given, accuracy, expected = alone
    ranks = RankProcesses(finetune_without_memory, 2, tmp_path / "output", number, *given, tmp_path / "two")
    assert ranks.results() == [accuracy] * 2
    assert "continuing with --micro-batch 2, the batch stays" in "".join(ranks.stderr())
    assert losses(tmp_path / "two")[-1] == pytest.approx(expected[-1], rel=1e-4)

"""Ranks of the command that fine-tunes."""

import numpy as np
import pytest
from labeled_stripes import write_stripes
from rank_processes import RankProcesses
from saved_runs import make_run
from shared_runs import finetune_with, records


def test_ranks_fine_tune_what_one_process_does(tmp_path):
    given = write_stripes(tmp_path / "data"), tmp_path / "backbone"
    make_run(tmp_path / "backbone", "mae_vit_test")
    ranks = RankProcesses(finetune_with, 2, tmp_path / "output", *given, tmp_path / "two")
    accuracy = finetune_with(*given, tmp_path / "one")
    assert ranks.results() == [accuracy] * 2
    one, two = (records(tmp_path / name) for name in ("one", "two"))
    assert np.asarray([record["loss"] for record in two]) == pytest.approx(
        np.asarray([record["loss"] for record in one]), rel=1e-5
    )

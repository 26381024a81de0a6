"""torchrun starts both commands that train; one process prints and writes."""

import sys

import commands
import numpy as np
import pytest
from labeled_stripes import write_stripes
from rank_processes import RankProcesses
from saved_runs import make_run
from shared_runs import finetune_with, records


def test_torchrun_trains_and_rank_0_alone_prints(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["bim_vit_test", "--out", str(tmp_path / "run"), "--steps", "3", "--workers", "0", "--log-every", "1"]
    ended = commands.run([*command, "-m", "bimkern.pretrain", *options], timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("step 3/3") == 1
    assert ended.stdout.count("Next: look at") == 1
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3]
    assert all(record["comm_wait"] <= record["comm_total"] for record in records(tmp_path / "run"))


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

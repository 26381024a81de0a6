"""Ranks end with their own exit code: no thread of gloo is left that the end of an interpreter could meet."""

import os
import sys

import commands
import pytest
from ending_ranks import LATE, threads_left_by
from rank_processes import RankProcesses, preload

preload("torch._dynamo", "torch.distributed.fsdp")

if sys.platform != "linux":
    pytest.skip("counts threads in Linux's /proc", allow_module_level=True)


def test_a_run_leaves_no_thread_of_gloo(tmp_path):
    length = {"steps": 2, "batch_size": 8}
    runs = [(tmp_path / shard, {"shard": shard} | length) for shard in ("none", "full")]
    assert RankProcesses(threads_left_by, 2, tmp_path / "output", runs).results() == [[0, 0]] * 2


def test_a_pipeline_leaves_no_thread_of_gloo(tmp_path):
    runs = [(tmp_path / "run", {"pipeline": True, "steps": 2, "batch_size": 8})]
    assert RankProcesses(threads_left_by, 4, tmp_path / "output", runs).results() == [[0]] * 4


def test_a_command_whose_thread_comes_back_late_ends_with_its_own_code(tmp_path):
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = commands.run([sys.executable, "-c", LATE, str(tmp_path / "ranks")], env=environment)
    assert (done.returncode, done.stderr) == (3, "")

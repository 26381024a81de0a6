"""A rank that is killed, hangs or fails ends the run everywhere, with one line; the same command resumes it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rank_processes import RankProcesses, command
from safetensors.torch import load_file

import bimkern
from bimkern import pretrain

KILLS = int(os.environ.get("BIMKERN_KILLS", "2"))  # of `make stress`: 20
STEPS = 12
TRAIN = ["bim_vit_test", "--batch-size", "8", "--workers", "0"]
TRAIN += ["--save-every", "2", "--log-every", "1"]


def arguments(folder, steps=STEPS, timeout=60):
    return [*TRAIN, "--steps", f"{steps}", "--out", f"{folder / 'run'}", "--dist-timeout", f"{timeout}"]


def start(folder, name, **options):
    """Start two ranks of the run in a folder."""
    return RankProcesses(command, 2, folder / name, pretrain.main, arguments(folder, **options))


def wait_for(happened, processes, seconds=100):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, processes.stderr()
        assert all(process.is_alive() for process in processes.processes), processes.stderr()
        time.sleep(0.01)


def is_training(folder):
    return lambda: (folder / "run/checkpoints/step-00000002").exists()


def said(processes):
    return [line for text in processes.stderr() for line in text.splitlines() if "WARNING" not in line]


def last_weights(folder):
    return load_file(folder / f"run/checkpoints/step-{STEPS:08d}/model.safetensors")


def assert_same(weights, others):
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the last weights of a run that nothing disturbs, and how long it took."""
    folder, begun = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    assert start(folder, "whole").wait() == [0, 0]
    return last_weights(folder), time.monotonic() - begun


def test_a_rank_killed_at_a_random_moment_ends_the_other_and_the_same_command_resumes(undisturbed, tmp_path):
    weights, took = undisturbed
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    for i in range(KILLS):
        killed = moments.randrange(2)
        ranks = start(tmp_path, f"kill-{i}", timeout=20)
        time.sleep(moments.uniform(0, took))
        was_alive = ranks.processes[killed].is_alive()
        ranks.processes[killed].kill()
        codes = ranks.wait()
        if was_alive:
            assert codes[killed] == -signal.SIGKILL
            assert codes[1 - killed] != 0 or (tmp_path / f"run/checkpoints/step-{STEPS:08d}").exists(), seed
            assert len(said(ranks)) <= 1, seed
    ranks = start(tmp_path, "last")
    assert ranks.wait() == [0, 0], ranks.stderr()
    assert_same(last_weights(tmp_path), weights)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_hangs_ends_both_within_the_timeout(tmp_path, stopped):
    ranks = start(tmp_path, "output", steps=100000, timeout=4)
    wait_for(is_training(tmp_path), ranks)
    hung = ranks.processes[stopped]
    os.kill(hung.pid, signal.SIGSTOP)
    ranks.processes[1 - stopped].join(60)
    assert ranks.processes[1 - stopped].exitcode == 1
    os.kill(hung.pid, signal.SIGCONT)
    assert ranks.wait() == [1, 1]
    assert "lost another rank" in said(ranks)[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_rank_saves_once_and_ends_both_with_143(undisturbed, tmp_path, rank):
    ranks = start(tmp_path, "output", steps=100000)
    wait_for(is_training(tmp_path), ranks)
    os.kill(ranks.processes[rank].pid, signal.SIGTERM)
    assert ranks.wait() == [143, 143], ranks.stderr()
    (line,) = said(ranks)
    assert "stopped by SIGTERM after step" in line


def fail_in(rank, error, options):
    """Run a command, in one rank of which a step raises an error."""
    from bimkern.train.pretraining import Pretraining

    if os.environ["RANK"] == f"{rank}":

        def step(*_):
            raise error

        Pretraining.step = step
    pretrain.main(options)


def test_the_exit_code_and_the_words_are_those_of_the_rank_that_fails_first(tmp_path):
    ranks = RankProcesses(fail_in, 2, tmp_path / "output", 1, SystemExit(7), arguments(tmp_path))
    assert ranks.wait() == [7, 7]
    assert said(ranks) == []
    ranks = RankProcesses(fail_in, 2, tmp_path / "output", 1, KeyError("a mistake of ours"), arguments(tmp_path))
    assert ranks.wait() == [1, 1]
    assert "KeyError: 'a mistake of ours'" in ranks.stderr()[1]
    assert ranks.stderr()[0] == ""


def test_torchrun_restarts_a_run_from_its_last_checkpoint(undisturbed, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(bimkern.__file__).parents[1])}  # this bimkern, not another
    output = tmp_path / "stdout"
    with output.open("w") as stdout:
        torchrun = subprocess.Popen(
            [*launch, "--max-restarts", "1", "-m", "bimkern.pretrain", *arguments(tmp_path)], stdout=stdout, env=environment
        )
    end = time.monotonic() + 200
    while not is_training(tmp_path)():
        assert torchrun.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert torchrun.wait(200) == 0
    assert f"resuming {tmp_path / 'run'} at step" in output.read_text()
    assert_same(last_weights(tmp_path), undisturbed[0])

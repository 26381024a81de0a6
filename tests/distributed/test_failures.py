"""A rank that is killed, hangs or fails ends the run everywhere, with one line; the same command resumes it."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from failing_ranks import (
    ended_while_connecting,
    failing_while_others_wait_for_its_disk,
    hanging_while_others_wait_for_its_disk,
    losing_rank_0,
    on_a_slow_disk,
    opening_its_files_slowly,
    stopped_while_connecting,
    with_a_mistake,
    with_sigterm_before_the_first_step,
    without_a_way_to_be_patient,
    without_memory_for_an_update,
)
from PIL import Image
from rank_processes import RankProcesses
from safetensors.torch import load_file
from shared_runs import records
from torch.distributed import TCPStore

import bimkern
from bimkern.pretrain import main

KILLS = int(os.environ.get("BIMKERN_KILLS", "2"))  # make stress: 20
STEPS = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def arguments(photos, folder, steps=STEPS, timeout=60):
    """Return those of a run of so many steps in a folder."""
    paths = ["--data", f"{photos}", "--out", f"{folder / 'run'}"]
    often = ["--save-every", "2", "--log-every", "1", "--dist-timeout", f"{timeout}"]
    return ["bim_vit_test", "--steps", f"{steps}", "--batch-size", "8", "--workers", "0", *paths, *often]


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """Return the last weights of a run that nothing disturbs, and how long it took."""
    folder, begun = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    assert RankProcesses(main, 2, folder / "output", arguments(photos, folder)).wait() == [0, 0]
    return last_weights(folder), time.monotonic() - begun


def last_weights(folder):
    return load_file(folder / f"run/checkpoints/step-{STEPS:08d}/model.safetensors")


def assert_same(weights, others):
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def wait_for_a_checkpoint(folder, is_running):
    end = time.monotonic() + 150
    while not (folder / "run/checkpoints/step-00000002").exists():
        assert is_running()
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def store():
    """Return a store that outlives the ranks, as torchrun's does."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def start(store):
    """Return what starts two ranks that meet in the store."""
    variables = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": f"{store.port}"}

    def start(function, output, command):
        variables["TORCHELASTIC_RESTART_COUNT"] = f"{next(_attempts)}"
        return RankProcesses(function, 2, output, command, variables=variables)

    return start


_attempts = count()


def said(processes):
    return [line for text in processes.stderr() for line in text.splitlines() if not line.startswith("WARNING")]


def test_a_rank_killed_at_any_moment_ends_the_other_and_the_same_command_resumes(undisturbed, photos, start, tmp_path):
    """A run that ends before a rank is killed begins again, so that every kill is of one that has steps to do."""
    weights, took = undisturbed
    seed = random.randrange(2**32)
    draw, found = random.Random(seed), Counter()
    for i in range(10 * KILLS):
        ranks, killed = start(main, tmp_path / f"kill-{i}", arguments(photos, tmp_path)), draw.randrange(2)
        ranks.processes[killed].join(draw.uniform(0, took))
        ranks.processes[killed].kill()
        codes, lines = ranks.wait(), said(ranks)
        survivor = codes[1 - killed]
        found[codes[killed], survivor] += 1
        if codes[killed] == 0:  # the run had ended
            assert (survivor, lines) == (0, []), seed
        else:
            assert codes[killed] == -signal.SIGKILL, seed
            assert survivor in (0, 1, 2), seed
            # 0: it had nothing left to ask of the other. 2: they were not yet connected, of which rank 0 tells.
            assert len(lines) == {0: 0, 1: 1, 2: killed}[survivor], (seed, lines)
        if survivor == 0:
            assert_same(last_weights(tmp_path), weights)
            shutil.rmtree(tmp_path / "run")
        if sum(count for (code, _), count in found.items() if code) == KILLS:
            break
    print(f"exit codes of the rank that was to be killed, and of the other: {dict(found)}")
    assert sum(count for (code, _), count in found.items() if code) == KILLS, seed
    assert start(main, tmp_path / "last", arguments(photos, tmp_path)).wait() == [0, 0], seed
    assert_same(last_weights(tmp_path), weights)


def test_a_rank_that_hangs_ends_the_other_within_the_timeout(photos, start, tmp_path):
    """Either rank, in two runs at a time, since both wait."""
    folders = [tmp_path / f"{stopped}" for stopped in range(2)]
    runs = [start(main, folder / "output", arguments(photos, folder, steps=10**6, timeout=10)) for folder in folders]
    for stopped, (folder, ranks) in enumerate(zip(folders, runs, strict=True)):
        wait_for_a_checkpoint(folder, lambda ranks=ranks: all(process.is_alive() for process in ranks.processes))
        os.kill(ranks.processes[stopped].pid, signal.SIGSTOP)
    for stopped, ranks in enumerate(runs):
        other = ranks.processes[1 - stopped]
        other.join(60)
        assert other.exitcode == 1
        os.kill(ranks.processes[stopped].pid, signal.SIGCONT)
        assert ranks.wait() == [1, 1]
        assert "lost another rank" in said(ranks)[0]


def test_a_rank_that_hangs_with_the_store_in_it_ends_the_others(tmp_path):
    ranks = RankProcesses(losing_rank_0, 2, tmp_path, 4)
    ranks.processes[1].join(60)
    reported, took = json.loads((tmp_path / "1.result").read_text())
    assert not reported  # no other rank may have said it
    assert took < 30


def test_a_rank_that_ends_before_it_is_connected_is_not_waited_for(tmp_path, start):
    ranks = start(ended_while_connecting, tmp_path, 4)
    ranks.wait(60)
    reason, took = json.loads((tmp_path / "0.result").read_text())
    assert "the 2 ranks cannot connect" in reason
    assert took < 30


def test_a_rank_that_hangs_with_the_store_before_it_is_connected_is_not_waited_for(tmp_path):
    ranks = RankProcesses(stopped_while_connecting, 2, tmp_path, 2)
    ranks.processes[1].join(60)
    reason, took = json.loads((tmp_path / "1.result").read_text())
    assert "the 2 ranks cannot connect" in reason
    assert "(a rank hangs)" in reason
    assert took < 30


def test_a_save_that_is_slower_than_the_timeout_is_waited_for(photos, tmp_path):
    """By ranks that share images, and by those that have a stage each, in two runs at a time, since both wait."""
    runs = []
    for size, kind in ((2, []), (4, ["--pipeline"])):
        folder = tmp_path / f"{size}"
        given = [*arguments(photos, folder, steps=6, timeout=5), *kind]
        runs.append(RankProcesses(on_a_slow_disk, size, folder / "output", given, 8))
    for ranks in runs:
        assert set(ranks.wait()) == {0}, "".join(ranks.stderr())


def test_a_rank_that_opens_its_files_more_slowly_than_the_timeout_is_waited_for(photos, tmp_path):
    """Either rank, and one of a pipeline, in three runs at a time, since all wait."""
    runs = []
    for slow, size, kind in ((0, 2, []), (1, 2, []), (2, 4, ["--pipeline"])):
        folder = tmp_path / f"{slow}"
        given = [*arguments(photos, folder, steps=2, timeout=5), *kind]
        runs.append(RankProcesses(opening_its_files_slowly, size, folder / "output", given, slow, 7))
    for ranks in runs:
        assert set(ranks.wait()) == {0}, "".join(ranks.stderr())


def test_a_rank_0_that_hangs_as_a_whole_is_not_waited_for(tmp_path):
    ranks = RankProcesses(hanging_while_others_wait_for_its_disk, 2, tmp_path, 4)
    ranks.processes[1].join(60)
    assert json.loads((tmp_path / "1.result").read_text()) < 30


def test_others_hear_that_rank_0_has_failed_where_they_wait_for_its_disk(start, tmp_path):
    assert start(failing_while_others_wait_for_its_disk, tmp_path, 20).results() == [[1], [1]]


def test_a_torch_that_lacks_what_ranks_need_is_said(start, tmp_path):
    said = start(without_a_way_to_be_patient, tmp_path, 20).results()
    assert all("cannot change the timeout of a process group (_set_pg_timeout is gone)" in one for one in said)


def test_a_mistake_in_one_rank_is_shown_there_alone(photos, start, tmp_path):
    ranks = start(with_a_mistake, tmp_path / "output", arguments(photos, tmp_path))
    assert ranks.wait() == [1, 1]
    first, second = ranks.stderr()
    assert first == ""
    assert "KeyError: 'a mistake of ours'" in second


def test_a_rank_without_memory_for_an_update_ends_all_with_one_line(photos, start, tmp_path):
    ranks = start(without_memory_for_an_update, tmp_path / "output", arguments(photos, tmp_path, timeout=60))
    assert ranks.wait() == [1, 1]
    (line,) = said(ranks)
    assert "rank 1: not enough memory to update weights; choose --shard optimizer, more ranks or" in line


def test_sigterm_to_one_rank_before_the_first_step_ends_both_with_143(photos, start, tmp_path):
    ranks = start(with_sigterm_before_the_first_step, tmp_path / "output", arguments(photos, tmp_path))
    assert ranks.wait() == [143, 143]
    (line,) = said(ranks)
    assert line == "python -m bimkern.pretrain: stopped by SIGTERM; the same command resumes the run"


def test_torchrun_restarts_a_run_from_its_last_checkpoint_and_rank_0_alone_prints(undisturbed, photos, tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(bimkern.__file__).parents[1])}  # this bimkern, not another
    with (tmp_path / "output").open("w") as output:
        torchrun = commands.Command(
            [sys.executable, *launch, "-m", "bimkern.pretrain", *arguments(photos, tmp_path)],
            stdout=output,
            stderr=output,
            env=environment,
        )
    wait_for_a_checkpoint(tmp_path, lambda: torchrun.poll() is None)
    ranks = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    assert torchrun.wait(150) == 0, (tmp_path / "output").read_text()
    output = (tmp_path / "output").read_text()
    assert f"resuming {tmp_path / 'run'} at step" in output
    assert output.count(f"step {STEPS}/{STEPS}") == 1
    assert output.count("Next: look at") == 1
    assert [record["step"] for record in records(tmp_path / "run")] == [*range(1, STEPS + 1)]
    assert all(record["comm_wait"] <= record["comm_total"] for record in records(tmp_path / "run"))
    assert_same(last_weights(tmp_path), undisturbed[0])

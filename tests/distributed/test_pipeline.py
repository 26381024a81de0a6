"""A pipeline of two ranks learns, bit for bit, what one process learns."""

import os
import shutil
import signal

import pytest
import torch
from pipeline_runs import command, killed, out_of_memory, slow, terminated, train, train_uncut, two_stages
from rank_processes import RankProcesses
from shared_runs import records

from bimkern import pretrain
from bimkern.recipes import RECIPES
from bimkern.train import network
from bimkern.train.config.run import ConfigError, RunConfig

pytestmark = pytest.mark.usefixtures("without_pictures")

NAMES = ["bim_vit_test", "vitfreeze_vit_test_isolated"]
STEPS = 12
ONE = {"steps": STEPS, "normalize": "dataset"}  # which rank 0 measures for all
PIPELINE = ONE | {"pipeline": True}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sum in one thread, as every rank does: with two, a process adds up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def files(folder):
    """Return the content of what a run leaves for others, by its path."""
    kinds = ("checkpoints/*/*.safetensors", "exported/**/*.safetensors")
    return {path.relative_to(folder): path.read_bytes() for kind in kinds for path in folder.glob(kind)}


def learned(folder):
    """Return what a run has logged of what it learned."""
    same = ("step", "loss", "loss_per_stage", "skipped_updates", "lr", "epoch", "image_size", "held_out_loss_per_stage")
    return [{key: record[key] for key in same if key in record} for record in records(folder)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folders of runs of one process and of a pipeline, and what the ranks of the latter held."""
    folder = tmp_path_factory.mktemp("trained")
    pipeline = RankProcesses(train, 2, folder / "output", NAMES, folder / "two", PIPELINE)
    train(NAMES, folder / "one", ONE)
    return folder / "one", folder / "two", pipeline.results()


@pytest.mark.parametrize("name", NAMES)
def test_files_and_losses_are_those_of_one_process(trained, name):
    one, two = (folder / name for folder in trained[:2])
    assert len(files(one)) >= 4
    assert files(one) == files(two)
    assert learned(one) == learned(two)
    assert records(one)[-1]["held_out_loss_per_stage"]


def test_a_stage_is_frozen_in_both(trained):
    frozen = [record["loss_per_stage"].count(None) for record in records(trained[1] / NAMES[1])]
    assert min(frozen) == 0 < max(frozen)


@pytest.mark.parametrize("name", NAMES)
def test_a_rank_holds_its_stage_alone(trained, tmp_path, name):
    model = network.build(two_stages(name, tmp_path))
    for rank, held in enumerate(trained[2]):
        parameters = [parameter for _, parameter in model.stage_parameters(rank)]
        own = sum(parameter.numel() for parameter in parameters)
        assert held[name] == [own, 2 * own + len(parameters)]


def test_waiting_is_in_the_metrics_by_rank(trained):
    for record in records(trained[1] / NAMES[0]):
        assert record["input_wait_per_rank"][0] == record["output_wait_per_rank"][1] == 0
        assert record["input_wait_per_rank"][1] > 0
        assert len(record["data_wait_per_rank"]) == 2


def test_either_resumes_the_other(trained, tmp_path):
    one, two, _ = trained
    for source, target in ((one, "two"), (two, "one")):
        shutil.copytree(source, tmp_path / target)
        for name in NAMES:
            shutil.rmtree(tmp_path / target / name / "checkpoints" / f"step-{STEPS:08d}")
    pipeline = RankProcesses(train, 2, tmp_path / "output", NAMES, tmp_path / "two", PIPELINE)
    train(NAMES, tmp_path / "one", ONE)
    pipeline.results()
    for name in NAMES:
        for resumed in ("one", "two"):
            assert files(tmp_path / resumed / name) == files(one / name)
            assert learned(tmp_path / resumed / name) == learned(one / name)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    run = RankProcesses(command, 2, tmp_path / "output", terminated, 1, NAMES[0], tmp_path / "run", PIPELINE)
    assert run.wait() == [128 + signal.SIGTERM] * 2
    first, second = run.stderr()
    assert "stopped by SIGTERM after step 5; the same command resumes the run" in first
    assert not second
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000005"]


def test_saves_may_be_further_apart_than_a_rank_is_waited_for(tmp_path):
    options = PIPELINE | {"dist_timeout": 6}
    run = RankProcesses(command, 2, tmp_path / "output", slow, 0, NAMES[0], tmp_path / "run", options)
    assert run.wait() == [0, 0], run.stderr()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


def test_a_killed_rank_ends_the_other_and_the_run_resumes(trained, tmp_path):
    run = RankProcesses(command, 2, tmp_path / "output", killed, 1, NAMES[0], tmp_path / NAMES[0], PIPELINE)
    assert run.wait() == [1, -signal.SIGKILL]
    lines = [line for line in "".join(run.stderr()).splitlines() if not line.startswith("WARNING")]
    assert len(lines) == 1, lines
    assert "lost another rank" in lines[0]
    train(NAMES[:1], tmp_path, ONE)
    assert files(tmp_path / NAMES[0]) == files(trained[0] / NAMES[0])


def test_a_rank_without_memory_ends_the_run_with_one_line(tmp_path):
    run = RankProcesses(command, 2, tmp_path / "output", out_of_memory, 1, NAMES[0], tmp_path / "run", PIPELINE)
    assert run.wait() == [1, 1]
    (line,) = "".join(run.stderr()).splitlines()
    assert "rank 1: not enough memory for its stage; choose a smaller --micro-batch. The same command resumes" in line


@pytest.mark.skipif("BIMKERN_STRESS" not in os.environ, reason="more ranks are for make stress")
@pytest.mark.parametrize(
    "name", ["bim_vit_test_growing", "vitfreeze_vit_test_isolated", "bim_swin_tiny_test", "bim_fastmim_p_vit_test"]
)
def test_as_many_ranks_as_a_recipe_has_stages(tmp_path, name):
    size = len(RECIPES[name].config.method.taps)
    pipeline = RankProcesses(train_uncut, size, tmp_path / "output", [name], tmp_path / "all", PIPELINE)
    train_uncut([name], tmp_path / "one", ONE)
    pipeline.results()
    assert files(tmp_path / "one" / name) == files(tmp_path / "all" / name)
    assert learned(tmp_path / "one" / name) == learned(tmp_path / "all" / name)


REFUSED = [
    (
        "bim_vit_test",
        "bim_vit_test has 4 stages, one for each rank, got 2 ranks; choose 4 ranks, or --set method.taps=1,3, or",
    ),
    ("mae_vit_test", "the stages of mae_vit_test learn together, by EndToEnd; choose a recipe whose flow is Local, or"),
]


@pytest.mark.parametrize(("name", "message"), REFUSED)
def test_what_is_no_pipeline_is_refused_in_one_line(tmp_path, name, message):
    arguments = [name, "--pipeline", "--out", f"{tmp_path / 'run'}"]
    run = RankProcesses(pretrain.main, 2, tmp_path / "output", arguments)
    assert run.wait() == [2, 2]
    first, second = run.stderr()
    assert first.count("\n") == 1
    assert f"--pipeline: {message} leave --pipeline out" in first
    assert not second
    assert not (tmp_path / "run").exists()


def test_sharding_is_refused():
    with pytest.raises(ConfigError, match="--pipeline with --shard optimizer: each rank has the optimizer's state of"):
        RunConfig(pipeline=True, shard="optimizer")

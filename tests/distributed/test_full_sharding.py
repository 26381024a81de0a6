"""Ranks that share out the layers of a network train, save and resume as one process does that has all of them."""

import shutil
import signal
from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from finished_runs import killed, saved
from full_ranks import build_and_count, command_without_memory, train_and_count, train_frozen
from rank_processes import RankProcesses, preload
from safetensors.torch import load_file
from sharded_ranks import train_in_turn
from shared_runs import nan_in_stage_3, records, train_with

from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.recipes.finetuning import FINETUNE_RECIPES
from bimkern.train import network
from bimkern.train.config.run import ConfigError, RunConfig
from bimkern.train.loop import sharded_layers
from bimkern.train.loop.sharded_layers import SharedLayers

preload("torch._dynamo", "torch.distributed.fsdp")

pytestmark = pytest.mark.usefixtures("without_pictures")

NAMES = ["bim_vit_test", "mae_vit_test", "vitfreeze_vit_test"]  # the last across the steps at which layers freeze
LENGTH = {"steps": 20, "save_every": 10, "batch_size": 8}
FULL = {"shard": "full"} | LENGTH


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder of runs of one process, and of two ranks that share out layers."""
    folder = tmp_path_factory.mktemp("trained")
    runs = [(name, folder / "two" / name, FULL) for name in NAMES]
    ranks = RankProcesses(train_in_turn, 2, folder / "output", runs)
    train_in_turn([(name, folder / "one" / name, LENGTH) for name in NAMES])
    ranks.results(240)
    return folder


def losses(folder):
    found = [record["loss_per_stage"] for record in records(folder)]
    return np.asarray(found, dtype=float)  # None, of a stage that is frozen, becomes NaN


def assert_same_losses(folder, other):
    assert losses(folder) == pytest.approx(losses(other), rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_one_process(trained, name):
    one, two = (trained / folder / name for folder in ("one", "two"))
    assert [record["step"] for record in records(two)] == [*range(1, LENGTH["steps"] + 1)]
    assert_same_losses(two, one)
    for alone, shared in zip(records(one), records(two), strict=True):
        for same in ("image_size", "lr", "epoch", "skipped_updates"):
            assert alone[same] == shared[same]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_that_of_one_process(trained, name):
    one, two = (saved(trained / folder / name) for folder in ("one", "two"))
    assert two.keys() == one.keys()
    for key, tensor in two.items():
        assert (tensor.shape, tensor.dtype) == (one[key].shape, one[key].dtype), key
        if not key.startswith("encoder.blocks") or "qkv.bias" in key:  # of keys, whose gradients are rounding
            continue
        assert (tensor - one[key]).norm() <= 1e-3 * one[key].norm(), key


def test_it_is_exported_as_a_whole(trained):
    files = {path.relative_to(trained / "one") for path in (trained / "one").rglob("exported/**/*.safetensors")}
    assert files
    assert files == {path.relative_to(trained / "two") for path in (trained / "two").rglob("exported/**/*.safetensors")}
    for path in files:
        one, two = (load_file(trained / folder / path) for folder in ("one", "two"))
        assert {name: t.shape for name, t in two.items()} == {name: t.shape for name, t in one.items()}


def test_one_process_and_then_ranks_again_resume_a_run(trained, tmp_path):
    folders = [killed(trained / "two" / name, tmp_path / name) for name in NAMES[::2]]
    runs = [(folder.name, folder, FULL | {"save_every": 5}) for folder in folders]
    train_in_turn(runs)
    for folder in folders:
        assert_same_losses(folder, trained / "one" / folder.name)
        shutil.rmtree(folder / "checkpoints/step-00000020")  # that of step 15 is left
    RankProcesses(train_in_turn, 2, tmp_path / "output", runs).results(240)
    for folder in folders:
        assert_same_losses(folder, trained / "one" / folder.name)


def test_layers_that_are_frozen_from_the_first_step_are_trained_and_resumed_as_by_one_process(tmp_path):
    length = {"steps": 2, "save_every": 1, "batch_size": 8}
    ranks = RankProcesses(train_frozen, 2, tmp_path / "output", tmp_path / "two", length | {"shard": "full"})
    train_frozen(tmp_path / "one", length)
    ranks.results()
    assert_same_losses(tmp_path / "two", tmp_path / "one")
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    assert one.keys() < two.keys()
    assert not any(two[key].any() for key in two.keys() - one.keys())  # of what never had a gradient


def test_a_device_gets_one_whole_layer_at_a_time(monkeypatch):
    config, calls = RECIPES["mae_vit_test"].config, []
    model, move = network.build(config), torch.nn.Module.to

    def moved(module, device):
        calls.append(("moved", module))
        return move(module, device)

    def shard(layer, **options):
        calls.append(("sharded", layer))
        return MagicMock()

    monkeypatch.setattr(torch.nn.Module, "to", moved)
    monkeypatch.setattr(sharded_layers, "fully_shard", shard)
    monkeypatch.setattr(sharded_layers, "share_comm_ctx", list)
    SharedLayers(MagicMock(rank=0, size=2), torch.device("cpu")).keep(model, torch.device("cpu"))
    layers = [layer for part in (model.encoder, *model.heads) for layer in part.layers]
    assert calls == [*((what, layer) for layer in layers for what in ("moved", "sharded")), ("moved", model)]


def test_no_rank_has_more_than_its_share_and_a_layer_while_the_network_is_built(tmp_path):
    model = network.build(RECIPES["mae_vit_test"].config)
    layers = [layer for part in (model.encoder, *model.heads) for layer in part.layers]
    largest = max(sum(p.nbytes for p in layer.parameters()) for layer in layers)
    whole = sum(p.nbytes for p in model.parameters())
    for now, peak, equal in RankProcesses(build_and_count, 2, tmp_path, "mae_vit_test").results():
        assert equal
        assert now < 0.65 * whole
        assert peak <= now + largest


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda layer: layer.weight.data.copy_(layer.weight.data * 2), "aten.mul"),
        (lambda layer: layer.bias.data.fill_(layer.weight.tolist()[0][0]), "Cannot copy out of meta tensor"),
        (lambda layer: layer.bias.data.fill_(float(layer.weight.detach().numpy()[0, 0])), "can't convert meta"),
        (
            lambda layer: layer.register_buffer("steps", torch.ones(3, device=layer.weight.device)),
            "steps is on the dev",
        ),
    ],
    ids=["operation", "list", "numpy", "device"],
)
def test_a_network_whose_constructor_reads_its_weights_is_built_at_once(caplog, read, reason):
    def build():
        layer = torch.nn.Linear(3, 3)
        read(layer)
        return layer

    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(3)
        expected = build().state_dict()
        torch.default_generator.manual_seed(3)
        layer = SharedLayers(MagicMock(rank=0, size=2), torch.device("cpu")).built(build)
    assert all(torch.equal(expected[name], tensor) for name, tensor in layer.state_dict().items())
    assert f"the network is built as a whole in every rank, on the host ({reason}" in caplog.text


def test_layers_of_a_swin_are_those_that_it_calls(tmp_path):
    options, name = {"steps": 3, "batch_size": 8}, "bim_swin_tiny_test"
    runs = [(name, tmp_path / shard, options | {"shard": shard}) for shard in ("none", "full")]
    RankProcesses(train_in_turn, 2, tmp_path / "output", runs).results(240)
    assert_same_losses(tmp_path / "full", tmp_path / "none")


def test_the_time_of_layers_on_their_way_is_in_the_metrics(trained):
    for record in records(trained / "two" / "mae_vit_test")[2:]:
        assert record["comm_total"] > sum(record["comm_total_per_update"])
        assert 0 <= record["comm_wait"] <= record["comm_total"]
        assert record["live_activation_bytes"] is None


def test_each_of_four_ranks_has_little_more_than_a_quarter(tmp_path):
    # Of a network as tiny as this, 18 % of the weights lie outside of layers; of ViT-H, 0.3 %.
    options = {"steps": 2, "batch_size": 8}
    ranks = RankProcesses(train_and_count, 4, tmp_path / "output", "mae_vit_test", tmp_path / "four", FULL | options)
    alone = train_and_count("mae_vit_test", tmp_path / "one", LENGTH | options)
    for shared in ranks.results():
        assert sum(shared) <= 0.30 * sum(alone)


def test_a_gradient_that_is_not_finite_on_one_rank_skips_that_stage_on_all(tmp_path):
    options = FULL | {"steps": 6}
    ranks = RankProcesses(
        train_with, 2, tmp_path / "output", nan_in_stage_3, 1, NAMES[0], tmp_path / "run", None, options
    )
    first, second = ranks.results()
    assert first == second
    assert np.isfinite(first).all()
    assert records(tmp_path / "run")[-1]["skipped_updates"] == [0, 0, 1, 0]


def arguments(tmp_path, *more):
    often = ["--log-every", "1", "--dist-timeout", "30", "--workers", "0"]
    return [NAMES[0], "--out", f"{tmp_path / 'run'}", "--shard", "full", *often, *more]


def said(ranks):
    return [line for text in ranks.stderr() for line in text.splitlines() if not line.startswith("WARNING")]


def test_a_rank_without_memory_ends_the_run_with_one_line(tmp_path):
    given = arguments(tmp_path, "--steps", "6", "--batch-size", "8", "--micro-batch", "3")
    ranks = RankProcesses(command_without_memory, 2, tmp_path / "output", given)
    assert ranks.wait() == [1, 1]
    (line,) = said(ranks)
    assert "rank 1 is out of memory in the middle of a step" in line
    assert "--micro-batch" in line


def test_a_rank_that_is_killed_ends_the_other_with_one_line(tmp_path):
    given = arguments(tmp_path, "--steps", "100000", "--batch-size", "8")
    ranks = RankProcesses(main, 2, tmp_path / "output", given)
    ranks.wait_for(lambda: (tmp_path / "run/metrics.jsonl").is_file() and len(records(tmp_path / "run")) > 2)
    ranks.processes[1].kill()
    assert ranks.wait() == [1, -signal.SIGKILL]
    (line,) = said(ranks)
    assert "lost another rank" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "apex_lamb"}, "--shard full: apex_lamb needs the norms of whole parameters; choose --shard"),
        ({"compile": True}, "--shard full with --compile: compiled layers cannot be gathered and freed; leave it out"),
        ({"precision": "fp16"}, "--shard full with --precision fp16: ranks would scale their losses differently"),
        ({"arena": "plan"}, "--shard full with --arena plan: gathered layers outlive a step; choose off"),
        ({"pipeline": True}, "--pipeline with --shard full: each rank has the optimizer's state of its own stage"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(shard="full", **options)


def test_averaged_weights_of_fine_tuning_are_refused():
    config = FINETUNE_RECIPES["demo"].config
    with pytest.raises(ConfigError, match=r"--shard full: averaged weights are a second network.*choose --shard optim"):
        replace(config, run=replace(config.run, shard="full"), ema=0.9)


def test_ranks_that_would_gather_layers_unequally_often_are_refused(tmp_path):
    given = arguments(tmp_path, "--batch-size", "7", "--micro-batch", "3")
    ranks = RankProcesses(main, 2, tmp_path / "output", given)
    assert ranks.wait() == [2, 2]
    (line,) = said(ranks)
    assert "some gather layers 2 times and others 1; choose a --batch-size that is a multiple of 2" in line

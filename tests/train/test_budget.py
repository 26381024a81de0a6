"""Runs that do not fit into memory: refused before the first step, or cut into smaller micro-batches."""

import ctypes
import json
import os
import sys
from dataclasses import replace

import commands
import numpy as np
import pytest
import torch
from PIL import Image

from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.recipes.finetuning import FINETUNE_RECIPES
from bimkern.train import network
from bimkern.train.config.run import ConfigError, RunConfig
from bimkern.train.memory import budget
from bimkern.train.memory.budget import (
    MemoryEstimator,
    OutOfMemory,
    available_memory,
    check_memory,
    fewest,
    find_fitting,
    halve_micro_batch,
    is_out_of_memory,
    largest,
)
from bimkern.train.memory.shares import of_images, spared_bytes
from bimkern.units import human_bytes

pytestmark = pytest.mark.usefixtures("without_pictures")

CPU = torch.device("cpu")

# One thread and one heap, and a freed tensor gives its addresses back.
FEW_ADDRESSES = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}

# In every step the process may get so many MB more of addresses than it has at the step's start.
LIMITED = """
import resource, sys
from pathlib import Path
from bimkern.pretrain import main
from bimkern.train.pretraining import Pretraining

step = Pretraining.step

def limited(self, index, batch, memory):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(sys.argv[1]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        return step(self, index, batch, memory)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, 2 * (resource.RLIM_INFINITY,))

Pretraining.step = limited
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return folder


@pytest.mark.parametrize("recipe", ["mae_vit_test", "bim_vit_test"])
def test_without_memory_for_a_step_the_micro_batch_is_halved_and_the_batch_stays(photos, tmp_path, recipe):
    options = ["--data", str(photos), "--workers", "0", "--batch-size", "1024", "--steps", "2", "--log-every", "1"]
    main([recipe, *options, "--micro-batch", "128", "--out", str(tmp_path / "plain")])
    limited = [sys.executable, "-c", LIMITED, "40", recipe, *options, "--out", str(tmp_path / "limited")]
    done = commands.run(limited, env=FEW_ADDRESSES, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "step 1: not enough memory for 1024 images at a time; continuing with --micro-batch 512" in done.stderr
    (plain, other) = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "limited")
    )
    for one, two in zip(plain, other, strict=True):
        assert one["loss_per_stage"] == pytest.approx(two["loss_per_stage"], rel=1e-4)
    run = json.loads((tmp_path / "limited" / "config.json").read_text())["run"]
    assert run["batch_size"] == 1024
    assert run["micro_batch"] < 1024


def test_what_cannot_fit_is_refused_before_the_first_step(photos, tmp_path, capsys):
    options = ["--data", str(photos), "--batch-size", str(10**9), "--steps", "1", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        main(["mae_vit_test", *options])
    assert stop.value.code == 2
    assert "mae_vit_test needs at least" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("reason", [None, "there is no arena"])
def test_a_refusal_says_what_fits(monkeypatch, reason):
    monkeypatch.setattr(budget, "unusable", lambda: reason)
    config = RECIPES["bim_vit_test"].config
    config = replace(config, run=replace(config.run, batch_size=256))
    monkeypatch.setattr(budget, "available_memory", lambda device: 9 * 2**20)
    with pytest.raises(ConfigError) as refused:
        check_memory(config, CPU)
    text = str(refused.value)
    assert (
        "for steps of 256 images, 256 at a time, decoded in slices: 1; 9 MiB are available. Options that fit: --slices"
        in text
    )
    words = text.replace(",", "").split()
    for option in ("slices", "micro-batch", "batch-size"):
        value = int(words[words.index(f"--{option}") + 1])
        check_memory(replace(config, run=replace(config.run, **{option.replace("-", "_"): value})), CPU)


def test_room_is_for_a_larger_micro_batch_where_the_batch_comes_in_parts(monkeypatch):
    config = RECIPES["bim_vit_test"].config
    config = replace(config, run=replace(config.run, batch_size=256, micro_batch=4))
    estimator, limit = MemoryEstimator(), 2**24
    fits = find_fitting(config, estimator, limit)
    assert (fits.batch_size, fits.slices) == (None, None)
    assert 4 < fits.micro_batch < 256

    def peak(micro_batch):
        return estimator.peak(replace(config, run=replace(config.run, micro_batch=micro_batch)))

    assert peak(fits.micro_batch) <= limit < peak(fits.micro_batch + 2)


def test_nothing_fits_into_nothing(monkeypatch):
    monkeypatch.setattr(budget, "available_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"1000 B are available\. No option fits; choose a smaller recipe"):
        check_memory(RECIPES["mae_vit_test"].config, CPU)


def test_ranks_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(budget, "available_memory", lambda device: 4000)
    monkeypatch.setattr(budget, "local_world_size", lambda: 4)
    with pytest.raises(ConfigError, match=r"; 1000 B are available\."):
        check_memory(RECIPES["mae_vit_test"].config, CPU, 4)


def test_sums_over_ranks_need_memory_and_sharding_spares_some(monkeypatch):
    monkeypatch.setattr(budget, "available_memory", lambda device: 10**6)
    config = RECIPES["mae_vit_test"].config
    weights = sum(p.nbytes for p in network.build(config).parameters() if p.requires_grad)
    assert spared_bytes(config, 1) == 0
    assert spared_bytes(config, 4) == -weights
    sharded = replace(config, run=replace(config.run, shard="optimizer"))
    assert spared_bytes(sharded, 4) == 2 * weights * 3 // 4 - weights
    tuned = FINETUNE_RECIPES["demo"].config
    tuned = replace(tuned, encoder=config.method.encoder, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    classifier = network.build_classifier(tuned)
    classifier.train_positions()
    assert spared_bytes(tuned, 2) == -sum(p.nbytes for p in classifier.parameters())
    with pytest.raises(ConfigError, match=f", without the {human_bytes(weights)} that sums over ranks take"):
        check_memory(config, CPU, 4, spares=lambda: spared_bytes(config, 4))


def test_a_run_is_refused_for_one_copy_of_a_layer_that_is_sharded_and_planned_with_three():
    config = RECIPES["mae_vit_test"].config
    config = replace(config, run=replace(config.run, shard="full"))
    model = network.build(config)
    weights = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    called = [layer for part in (model.encoder, *model.heads) for layer in network.called_layers(part)]
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in called]
    states, rest = 2 * weights + 2 * sum(layers), weights - sum(layers)
    assert spared_bytes(config, 4) == states - states // 4 - rest - max(layers)
    (planned,) = of_images(config, config.step_layout(64).at(0), MemoryEstimator(), 4)
    assert planned.buffers == rest + 3 * max(layers)


def test_memory_that_is_there():
    assert 2**26 < available_memory(CPU) < 2**50


@pytest.mark.parametrize(("slope", "limit", "expected"), [(7, 702, 100), (7, 6, None), (0, 1, 2**20), (1, 40, 40)])
def test_the_largest_number_within_a_limit(slope, limit, expected):
    asked = []

    def cost(number):
        asked.append(number)
        return slope * number

    found = largest(cost, limit, 10)
    assert found == expected or (expected == 2**20 and found >= expected)
    assert len(asked) < 15
    assert largest(cost, limit, 5, grow=False) == (expected and min(5, expected))


def test_the_fewest_within_a_limit():
    assert [fewest(lambda n: 100 // n, limit, 1, 32) for limit in (60, 25, 9, 3, 2)] == [2, 4, 11, 26, None]
    assert fewest(lambda n: 0, 1, 4, 4) is None


def test_out_of_memory_is_recognized():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("could not execute a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for the matmul primitive."))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(RuntimeError('torch_call_dispatcher( "aten::new_empty", ...) API call failed at ops.h'))


SHORT_IN_A_KERNEL = """
import resource, torch
from pathlib import Path
from bimkern.ops import gather_tokens
from bimkern.train.memory.budget import is_out_of_memory

tokens, keep, pos = torch.zeros(64, 196, 1024), torch.arange(196).repeat(64, 1), torch.zeros(196, 1024)
gather_tokens(tokens[:1], keep[:1], pos)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**20, resource.RLIM_INFINITY))
try:
    gather_tokens(tokens, keep, pos)
except RuntimeError as error:
    print("aten::new_empty" in str(error), is_out_of_memory(error))
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(torch._C.__file__), "torch_exception_get_what_without_backtrace"),
    reason="this torch does not tell a kernel why an allocation failed",
)
def test_out_of_memory_in_a_kernel_says_so():
    done = commands.run([sys.executable, "-c", SHORT_IN_A_KERNEL], timeout=60)
    assert done.stdout.split() == ["True", "True"], done.stderr


SHORT_IN_ONEDNN = """
import resource, torch
from pathlib import Path
from bimkern.train.memory.budget import is_out_of_memory

def convolve(weight):
    torch.mkldnn_convolution(images, weight, None, (0, 0), (1, 1), (1, 1), 1)

images = torch.zeros(1, 8, 9, 9)
first, *others = [torch.zeros(8 * n, 8, 3, 3) for n in range(1, 256)]
convolve(first)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**19, resource.RLIM_INFINITY))
try:
    for weight in others:  # the code that it generates for another shape needs new memory
        convolve(weight)
except RuntimeError as error:
    print(error, "|", is_out_of_memory(error))
"""


def test_out_of_memory_in_onednn_is_recognized():
    done = commands.run([sys.executable, "-c", SHORT_IN_ONEDNN], env=FEW_ADDRESSES, timeout=60)
    assert done.stdout.endswith("| True\n"), (done.stdout, done.stderr)


def test_half_as_many_images_at_a_time():
    assert halve_micro_batch(RunConfig(batch_size=9)).micro_batch == 4
    assert halve_micro_batch(RunConfig(batch_size=9, micro_batch=2)).batch_size == 9
    with pytest.raises(OutOfMemory, match="not enough memory to train on one image at a time"):
        halve_micro_batch(RunConfig(batch_size=9, micro_batch=1))


@pytest.mark.parametrize(("room", "available"), [(3, 3), (2**70, None), (None, None)])
def test_the_limit_of_a_control_group_is_kept(monkeypatch, room, available):
    monkeypatch.setattr(budget.cgroup, "room", lambda: room)
    found = available_memory(CPU)
    assert found == available if available else 2**20 < found < 2**62

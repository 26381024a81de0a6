"""Runs whose memory is planned: they compute the same, and their steps get the same positions again."""

import json
from types import SimpleNamespace

import pytest
import torch
from growing import write_photos

from bimkern.data.demo import demo_images
from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.train import training
from bimkern.train.config.run import ConfigError
from bimkern.train.memory import allocator
from bimkern.train.memory.allocator import PlannedMemory, TorchMemory

pytestmark = pytest.mark.usefixtures("without_pictures")

CPU = torch.device("cpu")
PLANNED_FROM = 5  # two steps pass, the arena's first and its recorded one


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("files") / "photos", count=11)


@pytest.fixture
def train(photos, tmp_path):
    def run(arena, recipe, *options):
        out = tmp_path / arena
        common = ("--data", str(photos), "--out", str(out), "--workers", "0", "--log-every", "1", "--arena", arena)
        main([recipe, *common, *options])
        return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]

    return run


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("mae_vit_test", ("--precision", "fp16")),
        ("mae_vit_test", ("--micro-batch", "3", "--slices", "2")),
        ("bim_vit_test_growing", ("--micro-batch", "4", "--slices", "2")),
        ("fastmim_vit_test", ("--precision", "bf16")),
        ("localmim_vit_test", ()),  # as many cells at half the grid as masks happen to leave
    ],
)
def test_a_planned_run_computes_the_same_and_allocates_nothing_new(train, recipe, options):
    plain, planned = (train(arena, recipe, "--steps", "9", *options) for arena in ("off", "plan"))
    assert [record["loss_per_stage"] for record in plain] == [record["loss_per_stage"] for record in planned]
    assert {record["planned_bytes"] for record in plain} == {None}
    for record in planned[PLANNED_FROM + 1 :]:
        assert record["planned_peak_bytes"] == record["planned_bytes"] > 0  # measured = planned, to the byte
        assert 0 <= record["plan_gap"] <= 0.03
        assert (record["plans"], record["diverged_steps"]) == (1, 0)
        assert (record["upstream_calls"], record["unplanned_peak_bytes"]) == (0, 0)
        assert (record["reserved_bytes"], record["allocated_bytes"]) == (record["planned_bytes"], 0)


def test_every_image_size_gets_a_plan(train):
    plain, planned = (train(arena, "fastmim_p_vit_test", "--steps", "48") for arena in ("off", "plan"))
    assert [record["loss"] for record in plain] == [record["loss"] for record in planned]
    plans = {}
    for record in planned:
        plans.setdefault(record["image_size"], []).append(record["planned_bytes"])
    first, *_, last = [sizes[-1] for sizes in plans.values()]
    assert len(plans) == 3
    assert planned[-1]["plans"] == 3
    assert 0 < first < last
    assert all(sizes[0] is None for sizes in plans.values())  # the old plan is gone before the new one is made


def test_frozen_layers_get_smaller_plans(train):
    plain, planned = (train(arena, "vitfreeze_vit_test", "--steps", "100") for arena in ("off", "plan"))
    assert [record["loss"] for record in plain] == [record["loss"] for record in planned]
    sizes = [size for size in dict.fromkeys(record["planned_bytes"] for record in planned) if size is not None]
    assert len(sizes) > 2
    assert sizes == sorted(sizes, reverse=True)


def test_steps_that_change_are_recorded_with_the_plan_that_they_then_get():
    memory, records = PlannedMemory(CPU), []
    for size in [1000] * 6 + [5000] * 6:
        with memory.scope("work")("a"):
            torch.ones(size)
        records.append(memory.record())
    assert [record["plans"] for record in records[5::6]] == [1, 2]
    for record in records[5::6]:
        assert record["planned_bytes"] == record["planned_peak_bytes"] > 0
    assert memory.plan().peak == records[-1]["planned_bytes"] > records[5]["planned_bytes"]


def test_nothing_outlives_a_step(train, monkeypatch):
    live = []
    record = PlannedMemory.record

    def watched(memory):
        if memory._arena is not None:
            live.append(memory._arena.stats().live_allocations)
        return record(memory)

    monkeypatch.setattr(PlannedMemory, "record", watched)
    train("plan", "bim_vit_test", "--steps", "8", "--precision", "fp16")
    assert live == [0] * 6


def test_memory_does_not_drift(train):
    records = train("plan", "bim_vit_test", "--steps", "130", "--save-every", "130")[PLANNED_FROM + 1 :]
    (planned,) = {record["planned_bytes"] for record in records}
    assert {record["planned_peak_bytes"] for record in records} == {planned}
    assert {record["upstream_calls"] for record in records} == {0}
    held = [record["held_bytes"] for record in records]
    assert held[-1] <= 1.003 * held[30]


def test_auto_plans_on_a_cpu_unless_it_compiles():
    assert isinstance(allocator.choose("auto", CPU, compiled=False), PlannedMemory)
    assert isinstance(allocator.choose("auto", CPU, compiled=True), TorchMemory)
    assert isinstance(allocator.choose("off", CPU, compiled=False), TorchMemory)


def test_a_plan_of_what_is_compiled_is_refused():
    expected = "--arena plan: what --compile makes allocates memory differently while it is still compiling"
    with pytest.raises(ConfigError, match=expected):
        allocator.choose("plan", CPU, compiled=True)


def test_without_the_compiled_arena_a_run_continues_and_says_why(monkeypatch, caplog):
    monkeypatch.setattr(allocator, "unusable", lambda device_type: "the arena was not built")
    assert isinstance(allocator.choose("auto", CPU, compiled=False), TorchMemory)
    assert caplog.messages == ["--arena auto: torch's allocator serves the steps: the arena was not built"]
    with pytest.raises(ConfigError, match="--arena plan: the arena was not built"):
        allocator.choose("plan", CPU, compiled=False)


def test_a_cpu_has_no_pools(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["mae_vit_test", "--device", "cpu", "--arena", "pool", "--dry-run"])
    assert stop.value.code == 2
    assert "--arena pool: torch's allocator on a CPU has no pools; use plan or off" in capsys.readouterr().err


def test_a_run_prepares_its_memory_before_it_asks_a_gpu_for_anything(monkeypatch):
    asked = []
    monkeypatch.setattr(training.allocator, "prepare", lambda name, device, *, compiled: asked.append(name))
    stop = SimpleNamespace(choose=lambda *args, **options: asked.append("attention"))
    monkeypatch.setattr(training, "attention", stop)
    training._choose(RECIPES["mae_vit_test"].config, demo_images())
    assert asked == ["auto", "attention"]

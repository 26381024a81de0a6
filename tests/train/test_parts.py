"""Config, optimizer groups, metrics and the memory counter."""

import json
import math
import os
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from bimkern.files import jsonl
from bimkern.recipes import RECIPES
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.config.run import ConfigError, RunConfig, resolve_device
from bimkern.train.config.serialize import differences, to_json
from bimkern.train.memory.live_bytes import LiveBytes, held_bytes
from bimkern.train.memory.tracker import AllocationTracker
from bimkern.train.optim.group import GroupOptimizer
from bimkern.train.reporting import metrics
from bimkern.train.reporting.history import History
from bimkern.train.run_folder.folder import RunFolder

pytestmark = pytest.mark.usefixtures("without_pictures")

CPU = torch.device("cpu")


def optimizer(parameters, *, fp16=False, **config):
    made = GroupOptimizer("all", list(parameters.items()), AdamWConfig(**config), device=CPU, fp16=fp16)
    made.set_rates(lambda group: 0.1)
    return made


def test_adamw_takes_the_step_of_the_paper():
    weight, bias = nn.Parameter(torch.full((2, 2), 3.0)), nn.Parameter(torch.full((2,), 3.0))
    update = optimizer({"weight": weight, "bias": bias}, weight_decay=0.5)
    (weight.sum() + bias.sum()).backward()
    update.apply()
    # The first AdamW step moves by lr against the gradient's sign; only the matrix decays.
    torch.testing.assert_close(weight.data, torch.full((2, 2), 3.0 * (1 - 0.1 * 0.5) - 0.1))
    torch.testing.assert_close(bias.data, torch.full((2,), 3.0 - 0.1))
    assert weight.grad is None


def test_each_group_clips_its_own_gradients():
    large, small = nn.Parameter(torch.zeros(4, 1)), nn.Parameter(torch.zeros(4, 1))
    norms = {}
    for name, p, scale in (("large", large, 100.0), ("small", small, 0.01)):
        update = optimizer({name: p}, clip=1.0)
        (scale * p).sum().backward()
        update._optimizer.inner.register_step_pre_hook(
            lambda *_, p=p, name=name: norms.__setitem__(name, p.grad.norm().item())
        )
        update.apply()
    assert norms["large"] == pytest.approx(1.0, rel=1e-4)
    assert norms["small"] == pytest.approx(0.02)


def test_fp16_skips_only_the_group_whose_gradient_overflowed():
    good, bad = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    updates = [optimizer({"good": good}, fp16=True), optimizer({"bad": bad}, fp16=True)]
    updates[0].scale(good.sum()).backward()
    updates[1].scale(bad.sum() * float("inf")).backward()
    for update in updates:
        update.apply()
    assert not torch.equal(good.data, torch.ones(2, 2))
    assert torch.equal(bad.data, torch.ones(2, 2))
    scales = [update.scaler_state()["scale"] for update in updates]
    assert scales[1] == scales[0] / 2


def test_an_update_with_a_gradient_that_is_not_finite_is_skipped_and_counted():
    weight = nn.Parameter(torch.ones(2, 2))
    update = optimizer({"weight": weight}, clip=1.0)
    for scale, in_a_row in ((1.0, 0), (math.inf, 1), (math.nan, 2), (1.0, 0)):
        before = weight.detach().clone()
        (weight * scale).sum().backward()
        update.apply()
        assert torch.equal(weight, before) == (in_a_row > 0)
        assert int(update.skipped_in_a_row) == in_a_row
    assert int(update.skipped) == 2
    assert all(tensor.isfinite().all() for _, tensor in update.tensors())


def test_optimizer_state_survives_a_round_trip():
    def train(update, p, steps):
        for _ in range(steps):
            p.square().sum().backward()
            update.apply()

    plain, first = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    train(optimizer({"p": plain}), plain, 5)
    update = optimizer({"p": first})
    train(update, first, 2)
    second = nn.Parameter(first.detach().clone())
    resumed = optimizer({"p": second})
    resumed.load_tensors({name: t.clone() for name, t in update.tensors()} | {"other/step": torch.tensor(1.0)})
    train(resumed, second, 3)
    assert torch.equal(plain, second)


def test_live_bytes_counts_activations_and_nothing_else():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 1))
    x = torch.randn(1000, 64)
    with AllocationTracker(model.parameters(), counter := LiveBytes()):
        middle = model[1](model[0](x))
        size = 1000 * 256 * 4
        assert counter.now == 2 * size  # the first linear layer's output and that of GELU
        loss = model[2](middle).sum()
        loss.backward()
        del middle, loss
        assert counter.now == 0  # gradients of parameters are not counted
        x.add_(1)
        x.view(-1)
        assert counter.now == 0
    assert 4 * size <= counter.peak < 4.1 * size  # and the gradients of both


def test_held_bytes_of_the_process():
    now, peak = held_bytes(CPU)
    assert 0 < now
    assert 50 * 2**20 < peak


def test_metrics_are_cut_back_to_a_step_and_lines_that_are_no_records_are_dropped(tmp_path):
    log = metrics.Metrics(tmp_path, after_step=0)
    for step in (1, 2, 3):
        log.log({"step": step, "loss": math.nan, "loss_per_stage": [0.4, math.inf], "nothing": None})
    log.close()
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write('[]\n{"step": 4, "lo')
    for last in (3, 2):
        metrics.Metrics(tmp_path, after_step=last).close()
        lines = (tmp_path / metrics.FILE).read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, last + 1))
    value = pytest.approx(0.4)
    (kept, _) = jsonl.read(tmp_path / metrics.FILE)
    assert kept == {
        "step": 1,
        "loss": None,
        "loss_per_stage": [0.4, None],
        "nothing": None,
    }
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss_per_stage/1")] == [(1, value), (2, value)]
    assert events.Tags()["scalars"] == ["step", "loss_per_stage/1"]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 10, 33, 1000])
def test_a_history_is_evenly_spaced_bounded_and_ends_with_the_latest(monkeypatch, count):
    monkeypatch.setattr("bimkern.train.reporting.history._LENGTH", 8)
    history = History()
    for step in range(count):
        history.add({"step": step})
    steps = [record["step"] for record in history.records()]
    assert steps == list(range(count)) or 4 < len(steps) <= 9
    assert steps[-1:] == list(range(count))[-1:]
    assert len({later - step for step, later in pairwise(steps[:-1])}) <= 1


@pytest.mark.parametrize("name", ["held_out_top1", "held_out_loss_per_stage"])
def test_a_long_history_keeps_evaluations_of_which_there_are_few(monkeypatch, name):
    monkeypatch.setattr("bimkern.train.reporting.history._LENGTH", 8)
    history, evaluated = History(), [37, 111, 112, 500, 901]
    for step in range(1000):
        history.add({"step": step} | ({name: step} if step in evaluated else {}))
    records = history.records()
    assert [record["step"] for record in records if name in record] == evaluated
    assert sorted(record["step"] for record in records) == [record["step"] for record in records]
    assert 4 < len({record["step"] for record in records} - set(evaluated)) == len(records) - 5 <= 9
    for step in range(1000, 1010):  # they are bounded, too
        history.add({"step": step, name: step})
    assert 4 < sum(name in record for record in history.records()) <= 9 + 2


def test_the_history_of_metrics_is_what_stands_in_the_file(tmp_path):
    log = metrics.Metrics(tmp_path, after_step=0)
    for step in (1, 2, 3):
        log.log({"step": step, "loss": math.nan})
    assert [record["step"] for record in log.history.records()] == [1, 2, 3]
    log.cut_back(2)
    assert log.history.records() == jsonl.read(tmp_path / metrics.FILE) == [{"step": s, "loss": None} for s in (1, 2)]
    log.close()


def test_steps_come_from_epochs_or_are_given():
    def num_steps(num_images, **options):
        return replace(RECIPES["mae_vit_test"].config, run=RunConfig(**options)).step_layout(num_images).num_steps

    assert num_steps(101, epochs=3, batch_size=10) == 30
    assert num_steps(5, epochs=0.01, batch_size=10) == 1
    assert num_steps(101, epochs=3, steps=7) == 7


def test_peak_learning_rate_follows_the_batch():
    assert RunConfig(base_lr=1.5e-4, batch_size=4096).peak_lr == pytest.approx(2.4e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"steps": -1}, "--steps must be at least 1, got -1"),
        ({"batch_size": 10**400}, r"--batch-size must be below 2\*\*40, got 1000"),
        ({"micro_batch": 0}, "--micro-batch must be at least 1, got 0"),
        ({"epochs": 0}, "--epochs must be above 0 and finite, got 0"),
        ({"base_lr": 1e38, "batch_size": 4096}, r"--base-lr 1e\+38 with --batch-size 4096: the peak, .* got 1.6e\+39"),
        ({"base_lr": 1e-323, "batch_size": 1}, r"the peak, .*, must be from 1.2e-38 to 3.4e\+38, got 0.0e\+00"),
        ({"base_lr": float("nan")}, "--base-lr must be above 0 and finite, got nan"),
        ({"workers": -2}, "--workers must be at least 0, got -2"),
        ({"epochs": float("inf")}, "--epochs must be above 0 and finite, got inf"),
        ({"seed": 2**63}, r"--seed must be in \[0, 2\*\*63\), got 9223372036854775808"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(**options)


def test_devices_are_checked():
    assert resolve_device("cpu") == CPU
    with pytest.raises(ConfigError, match="--device must be auto, cpu, cuda or cuda:N, got 'tpu'"):
        resolve_device("tpu")
    with pytest.raises(ConfigError, match="--device must be"):
        resolve_device("cpu:")
    with pytest.raises(ConfigError, match="--device cuda:99: this machine offers"):
        resolve_device("cuda:99")


def test_a_run_folder_belongs_to_one_config(tmp_path):
    config = RECIPES["bim_vit_test"].config
    folder = RunFolder(tmp_path / "run")
    folder.open(config)
    folder.record(config)
    folder.open(replace(config, run=replace(config.run, loader="pil", log_every=1)))  # changes nothing that is computed
    with pytest.raises(ConfigError, match=r"holds a run with other settings \(run.seed: 0 before, 5 now\)"):
        folder.open(replace(config, run=replace(config.run, seed=5)))
    with pytest.raises(ConfigError, match=r"recipe: bim_vit_test before, mae_vit_test now"):
        folder.open(RECIPES["mae_vit_test"].config)


def test_what_a_run_killed_at_its_start_leaves_is_no_other_run(tmp_path):
    RunFolder(tmp_path / "run").open(RECIPES["bim_vit_test"].config)
    RunFolder(tmp_path / "run").open(RECIPES["mae_vit_test"].config)


def test_an_unusable_run_folder_is_refused(tmp_path):
    config = RECIPES["bim_vit_test"].config
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        RunFolder(tmp_path / "file" / "run").open(config)
    with pytest.raises(ConfigError, match="holds files but no run; choose an empty or a new folder"):
        RunFolder(tmp_path).open(config)
    foreign = tmp_path / os.fsdecode(b"run \xff")
    with pytest.raises(ConfigError, match=r"--out .* \udcff cannot be used: its path is not UTF-8, and safetensors"):
        RunFolder(foreign).open(config)
    assert not foreign.exists()


def test_config_json_names_every_piece_and_number():
    saved = to_json(RECIPES["bim_vit_base_growing"].config)
    assert saved["method"]["masker"] == {
        "type": "RandomDrop",
        "ratios": [0.65, 0.7, 0.8, 0.85],
        "decoder_sees": "before_drop",
        "loss_mask": "stage",
    }
    assert saved["method"]["flow"] == {"type": "Local"}
    assert json.loads(json.dumps(saved)) == saved
    assert differences(saved, saved) == []

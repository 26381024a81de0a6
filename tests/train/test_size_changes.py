"""Runs whose image size and batch change: they resume after any step, leak nothing, and lose no time."""

import gc
import itertools
import os
import shutil
import threading
import time
from dataclasses import replace
from multiprocessing import active_children

import pytest
import torch
from growing import records, register, repeatable, train, write_photos

from bimkern.data.dali import unusable
from bimkern.data.step_layout import Phase
from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import MIM
from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.train import network, trainer
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.loop import session
from bimkern.train.memory.estimate import live_activation_peak
from bimkern.train.memory.live_bytes import held_bytes
from bimkern.units import human_bytes

pytestmark = pytest.mark.usefixtures("without_pictures", "without_estimates")

LOADERS = ["pil", pytest.param("dali", marks=pytest.mark.skipif(unusable() is not None, reason=f"DALI: {unusable()}"))]
RECIPE_NAMES = ["fastmim_p_vit_test", "bim_fastmim_p_vit_test"]
GROWING = (
    Phase(share=0.5, image_size=32),
    Phase(share=0.25, image_size=48, batch_factor=0.5),
    Phase(share=0.25, image_size=64, batch_factor=2, micro_factor=0.5),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("files") / "photos")


def assert_same_run(one, other):
    assert repeatable(one) == repeatable(other)
    ours, theirs = (checkpoints.load_latest(out / "checkpoints").model for out in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_masks_targets_and_losses_follow_the_images(name):
    """The published program masks 160 pixels by the grid of 128."""
    config = RECIPES[name].config
    model = MIM(config.method)
    for phase in config.phases:
        side = phase.image_size.height // 16
        batch = micro_batch(model, phase.image_size.height)
        masked = side**2 - int(side**2 * 0.25)
        for view in batch.views:
            assert view.grid == (side, side)
            assert view.masked.sum(dim=1).tolist() == [masked] * 3
        assert losses_of(model, batch).isfinite().all()


def micro_batch(model, size):
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    return MicroBatch(images, model.views(images, torch.arange(3), seed=0))


def losses_of(model, batch):
    flow = model.method.flow
    return flow.step(model, [batch], [Ignore()] * len(flow.partition(model)))


class Ignore:
    """An update that learns nothing."""

    def scale(self, loss):
        return loss

    def apply(self):
        pass


def test_metrics_and_console_tell_size_epoch_and_learning_rate(photos, tmp_path, monkeypatch, capsys):
    config = register(monkeypatch, "growing", GROWING)
    train("growing", photos, tmp_path / "run", "--epochs", "16", "--steps", "None")
    found = records(tmp_path / "run")
    # 12 images: 8, 4 and 4 epochs of 96, 48 and 48 images in steps of 8, 4 and 16.
    assert [record["image_size"] for record in found] == [32] * 12 + [48] * 12 + [64] * 3
    batches = [8] * 12 + [4] * 12 + [16] * 3
    seen = 0
    for record, batch in zip(found, batches, strict=True):
        progress = (seen + batch / 2) / 192
        seen += batch
        assert record["epoch"] == seen / 12
        assert record["lr"] == pytest.approx(1.6e-2 * batch / 256 * config.schedule.factor(progress))
        assert 0 <= record["data_wait"] <= 1
        assert record["images_per_s"] > 0
    printed = capsys.readouterr().out
    assert "steps: 27 of 8, then 4, then 16 images of 32 px, then 48 px, then 64 px" in printed
    assert "epoch 16.00  64 px  loss" in printed
    assert found[-1]["loss"] < found[0]["loss"]


def test_images_a_second_are_counted_across_a_change(photos, tmp_path, monkeypatch):
    """An interval of steps of 8 and of 4 images."""
    register(monkeypatch, "growing", GROWING)
    intervals = []
    plain = session.Throughput.interval
    monkeypatch.setattr(
        session.Throughput, "interval", lambda self, done: intervals.append(plain(self, done)) or intervals[-1]
    )
    train("growing", photos, tmp_path / "run", "--epochs", "16", "--steps", "None", "--log-every", "8")
    crossing = records(tmp_path / "run")[2]
    assert crossing["step"] == 16
    assert crossing["images_per_s"] == pytest.approx((4 * 8 + 4 * 4) / intervals[2].seconds)


def test_the_best_checkpoint_is_sought_again_at_every_size(photos, tmp_path, monkeypatch):
    """Steps 1 to 10 have 32 pixels, 11 to 14 have 48, 15 and 16 have 64; saved is after every third and the last."""
    register(monkeypatch, "growing", base="bim_fastmim_p_vit_test")
    train("growing", photos, tmp_path / "run", "--steps", "16", "--save-every", "3")
    best = checkpoints.load_latest(tmp_path / "run" / "checkpoints").state["best"]
    loss, step = min((record["loss"], record["step"]) for record in records(tmp_path / "run")[14:])
    assert best == {"step": step, "loss": pytest.approx(loss), "frozen_stages": 0, "image_size": 64}


@pytest.fixture(scope="module", params=LOADERS)
def saved_at_every_step(request, photos, tmp_path_factory):
    """Return the options and the folder of a finished run that kept all its checkpoints."""
    options = ("--steps", "16", "--save-every", "1", "--loader", request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "_KEPT", 16)
        register(patch, "growing", base="bim_fastmim_p_vit_test")
        out = tmp_path_factory.mktemp(request.param) / "run"
        train("growing", photos, out, *options)
    assert [record["image_size"] for record in records(out)] == [32] * 10 + [48] * 4 + [64] * 2
    return options, out


@pytest.mark.parametrize("saved_at", [9, 10, 11, 14])
def test_a_run_resumes_bit_for_bit_about_a_change(saved_at_every_step, saved_at, photos, tmp_path, monkeypatch):
    options, whole = saved_at_every_step
    register(monkeypatch, "growing", base="bim_fastmim_p_vit_test")
    shutil.copytree(whole, tmp_path / "resumed")
    for later in range(saved_at + 1, 17):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / f"step-{later:08d}")
    train("growing", photos, tmp_path / "resumed", *options)
    assert_same_run(whole, tmp_path / "resumed")


def test_workers_and_micro_batches_do_not_change_what_is_learned(photos, tmp_path, monkeypatch):
    register(monkeypatch, "growing", GROWING)
    train("growing", photos, tmp_path / "plain", "--steps", "12")
    train("growing", photos, tmp_path / "other", "--steps", "12", "--workers", "2", "--micro-batch", "3")
    for plain, other in zip(records(tmp_path / "plain"), records(tmp_path / "other"), strict=True):
        assert plain["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_a_dry_run_tells_the_phases_and_the_peak_of_the_largest(photos, tmp_path, monkeypatch, capsys):
    level = tuple(replace(phase, micro_factor=1.0) for phase in GROWING)
    config = register(monkeypatch, "growing", level)
    train("growing", photos, tmp_path / "run", "--epochs", "16", "--steps", "None")
    counted = [record["live_activation_bytes"] for record in records(tmp_path / "run")]
    assert [index for index, count in enumerate(counted) if count is None] == [0, 12, 24]  # not the first of a size
    segments = config.step_layout(12).segments[:2]  # the last is of two micro-batches
    assert [live_activation_peak(config, segment) for segment in segments] == [counted[1], counted[13]]
    capsys.readouterr()
    main(["growing", "--data", str(photos), "--dry-run", "--epochs", "16", "--steps", "None"])
    printed = capsys.readouterr().out
    largest = live_activation_peak(config, config.step_layout(12).segments[2])
    assert f"activations    {human_bytes(largest)} live at most, with 8 images of 64 px at a time" in printed
    lines = [line for line in printed.splitlines() if line.startswith("phase")]
    assert lines == [
        "phase 1        12 steps of 8 images of 32 px, 8 at a time, from epoch 0, learning rate 5.000e-04 at its peak",
        "phase 2        12 steps of 4 images of 48 px, 4 at a time, from epoch 8, learning rate 2.500e-04 at its peak",
        "phase 3        3 steps of 16 images of 64 px, 8 at a time, from epoch 12, learning rate 1.000e-03 at its peak",
    ]


def test_compiled_layers_follow_and_are_not_compiled_again_for_every_size(monkeypatch):
    config = RECIPES["fastmim_p_vit_test"].config
    model, sizes = MIM(config.method), (32, 48, 64, 80)
    batches = [micro_batch(model, size) for size in sizes]
    plain = [losses_of(model, batch) for batch in batches]
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    network.compile_layers(model)
    graphs = []
    for batch, expected in zip(batches, plain, strict=True):
        torch.testing.assert_close(losses_of(model, batch), expected)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] < graphs[1] == graphs[2] == graphs[3]  # the second is for any number of tokens


class Watch(session.Reporter):
    """Note how long every step takes, and what the process holds after some of them."""

    looks_after = (15, 18, 27, 30, 39, 42, 51, 54)  # at the end of a large size, then of a small one
    held: list
    seconds: list
    begin = 0.0

    def step(self, done, record):
        self.seconds.append(time.perf_counter() - self.begin)
        super().step(done, record)
        if done in self.looks_after:
            gc.collect()
            tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
            storages = {t.data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel() > 16}
            files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
            resident, _ = held_bytes(torch.device("cpu"))
            self.held.append((sum(storages.values()), files, threads, len(active_children()), resident))
        self.begin = time.perf_counter()


@pytest.mark.parametrize("loader", LOADERS)
def test_twenty_changes_leak_nothing_and_cost_little(photos, tmp_path, monkeypatch, loader):
    """Three steps, two epochs, of every size: 64, 32, 64, ..."""
    phases = tuple(Phase(share=1 / 21, image_size=64 if i % 2 == 0 else 32) for i in range(21))
    register(monkeypatch, "changing", phases, steps=63)
    monkeypatch.setattr(Watch, "held", [], raising=False)
    monkeypatch.setattr(Watch, "seconds", [], raising=False)
    monkeypatch.setattr(session, "Reporter", Watch)
    monkeypatch.setattr(trainer.BottleneckWarning, "note", lambda *args: None)  # it would load some steps ahead, once
    train("changing", photos, tmp_path / "run", "--workers", "1", "--loader", loader)
    assert [record["image_size"] for record in records(tmp_path / "run")] == ([64] * 3 + [32] * 3) * 10 + [64] * 3
    *exact, resident = zip(*Watch.held, strict=True)
    for held in exact:  # bytes of tensors, files, threads, processes
        assert len(set(held[::2])) == len(set(held[1::2])) == 1
    assert exact[0][0] > exact[0][1] > 0
    # A leak shows from every size to the next of its kind; what an allocator takes by chance does not.
    assert min(after - before for before, after in itertools.pairwise(resident[::2])) < 2**19
    firsts = Watch.seconds[3::3]
    assert len(firsts) == 20
    assert max(firsts) < 2

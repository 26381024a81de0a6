"""Whole runs on real image files: they learn, repeat, and resume after being killed as if nothing had happened."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
from caches import empty_cache
from disk import mode, umask_of
from forked import ForkedCommand
from growing import MEMORY, NOT_REPEATABLE, write_photos
from options import filled
from PIL import Image

from bimkern.data.dali import unusable
from bimkern.pretrain import main
from bimkern.recipes import RECIPES
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.memory.estimate import live_activation_peak
from bimkern.units import human_bytes

pytestmark = pytest.mark.usefixtures("pictures_on_request")

needs_dali = pytest.mark.skipif(unusable() is not None, reason=f"DALI: {unusable()}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("files") / "photos", count=11)


def train(recipe, photos, out, *options):
    main([recipe, "--data", str(photos), "--out", str(out), *filled(options, workers=0, log_every=1)])


def records(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in NOT_REPEATABLE} for line in lines]


def weights(out):
    return checkpoints.load_latest(out / "checkpoints").model


def assert_same_run(one, other):
    assert records(one) == records(other)
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_leaves_everything_behind(photos, tmp_path, monkeypatch, capsys, pictures):
    with umask_of(0o027):
        monkeypatch.setenv("XDG_CACHE_HOME", empty_cache(tmp_path / "cache"))
        train("bim_vit_test_growing", photos, tmp_path / "run")
    cached = {*(tmp_path / "cache").rglob("*")} - {tmp_path / "cache" / "bimkern" / "arena"}  # which is of the session
    for path in {*(tmp_path / "run").rglob("*")} | cached:
        assert mode(path) == (0o750 if path.is_dir() else 0o640), path
    names = {p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert {"config.json", "images.jsonl", "metrics.jsonl", "checkpoints/step-00000020/manifest.json"} <= names
    assert {f"pictures/{name}.png" for name in ("reconstruction", "curves", "memory")} <= names
    backbones = [f"exported/backbone-depth{depth:02d}" for depth in (1, 2, 3, 4)]
    assert {f"{folder}/{name}" for folder in backbones for name in ("config.json", "model.safetensors")} <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    for record in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()):
        assert record.keys() == {
            *("step", "epoch", "image_size", "loss", "loss_per_stage", "lr", "skipped_updates", "images_per_s"),
            *("data_wait", "images_quarantined", "held_bytes", "peak_bytes", "live_activation_bytes"),
            *MEMORY,
        }
        assert len(record["loss_per_stage"]) == 4
        assert 0 <= record["data_wait"] <= 1
    printed = capsys.readouterr().out
    assert "step 20/20" in printed
    assert "Wrote" in printed
    for name in ("reconstruction", "curves", "memory"):
        with Image.open(tmp_path / "run" / "pictures" / f"{name}.png") as picture:
            assert picture.width > 300
            assert len(picture.convert("RGB").getcolors(2**24)) > 10


@pytest.mark.parametrize("recipe", ["mae_vit_test", "bim_vit_test_growing"])
@pytest.mark.parametrize(
    "options",
    [[], ["--micro-batch", "3", "--slices", "2"], ["--deterministic", "--precision", "fp16"]],
    ids=["whole", "accumulated", "deterministic"],
)
def test_a_run_repeats_bit_for_bit(photos, tmp_path, recipe, options):
    for name in ("one", "two"):
        train(recipe, photos, tmp_path / name, "--steps", "6", *options)
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("recipe", ["mae_vit_test", "bim_vit_test_growing"])
def test_a_dry_run_tells_the_live_activations_of_the_run(photos, tmp_path, recipe, capsys):
    options = ("--slices", "3", "--steps", "2")
    train(recipe, photos, tmp_path / "run", *options)
    counted = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["live_activation_bytes"]
    capsys.readouterr()
    main([recipe, "--data", str(photos), "--dry-run", *options])
    config = RECIPES[recipe].config
    config = replace(config, run=replace(config.run, slices=3))
    assert live_activation_peak(config, config.step_layout(11).at(0)) == counted
    told = f"activations    {human_bytes(counted)} live at most, with 8 images of 32 px at a time"
    assert told in capsys.readouterr().out


def test_another_seed_is_another_run(photos, tmp_path):
    for seed in ("0", "1"):
        train("mae_vit_test", photos, tmp_path / seed, "--steps", "2", "--seed", seed)
    assert records(tmp_path / "0") != records(tmp_path / "1")


def test_workers_and_micro_batches_do_not_change_what_is_learned(photos, tmp_path):
    train("bim_vit_test", photos, tmp_path / "plain", "--steps", "4")
    train("bim_vit_test", photos, tmp_path / "other", "--steps", "4", "--workers", "2", "--micro-batch", "3")
    for plain, other in zip(records(tmp_path / "plain"), records(tmp_path / "other"), strict=True):
        assert plain["loss_per_stage"] == pytest.approx(other["loss_per_stage"], rel=1e-4)


@needs_dali
def test_another_loader_changes_little_of_what_is_learned(photos, tmp_path, capsys):
    for loader in ("pil", "dali"):
        train("mae_vit_test", photos, tmp_path / loader, "--steps", "4", "--loader", loader, "--micro-batch", "3")
    assert "loader: DALI, decodes, crops, resizes and flips in 1 threads" in capsys.readouterr().out
    for pil, dali in zip(records(tmp_path / "pil"), records(tmp_path / "dali"), strict=True):
        assert pil["loss_per_stage"] == pytest.approx(dali["loss_per_stage"], rel=1e-2)


def assert_resumes(recipe, photos, folder, steps, *options):
    """Train a run whole, and another on from its last checkpoint but one: both are the same, bit for bit."""
    options = ("--steps", str(steps), *options)
    train(recipe, photos, folder / "whole", *options)
    shutil.copytree(folder / "whole", folder / "resumed")
    shutil.rmtree(folder / "resumed" / "checkpoints" / f"step-{steps:08}")
    train(recipe, photos, folder / "resumed", *options)
    assert_same_run(folder / "whole", folder / "resumed")


@needs_dali
def test_dali_resumes_from_a_checkpoint_bit_for_bit(photos, tmp_path):
    options = ("--save-every", "4", "--loader", "dali", "--micro-batch", "3")
    assert_resumes("mae_vit_test", photos, tmp_path, 7, *options)
    assert [record["step"] for record in records(tmp_path / "resumed")] == list(range(1, 8))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_float32(photos, tmp_path, precision):
    for name in ("fp32", precision):
        train("bim_vit_test", photos, tmp_path / name, "--steps", "8", "--precision", name)
    plain, half = records(tmp_path / "fp32"), records(tmp_path / precision)
    assert plain != half
    for ours, theirs in zip(plain, half, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)


def test_compiled_layers_train_the_same(photos, tmp_path):
    train("mae_vit_test", photos, tmp_path / "plain", "--steps", "3")
    train("mae_vit_test", photos, tmp_path / "compiled", "--steps", "3", "--compile")
    for plain, compiled in zip(records(tmp_path / "plain"), records(tmp_path / "compiled"), strict=True):
        assert plain["loss"] == pytest.approx(compiled["loss"], rel=1e-4)


def test_a_finished_run_is_not_trained_again(photos, tmp_path, capsys):
    train("mae_vit_test", photos, tmp_path / "run", "--steps", "3")
    before = records(tmp_path / "run")
    train("mae_vit_test", photos, tmp_path / "run", "--steps", "3")
    assert records(tmp_path / "run") == before
    assert "is finished, 3 steps" in capsys.readouterr().out


def test_lost_pictures_are_drawn_again(photos, tmp_path, pictures):
    train("mae_vit_test", photos, tmp_path / "run", "--steps", "3")
    pictures = tmp_path / "run" / "pictures"
    (pictures / "reconstruction.png").unlink()
    (pictures / "curves.png").write_bytes(b"torn")
    train("mae_vit_test", photos, tmp_path / "run", "--steps", "3")
    for name in ("reconstruction", "curves", "memory"):
        Image.open(pictures / f"{name}.png").verify()


def test_odd_sizes_work(photos, tmp_path):
    """One step, a batch beyond the data set, more slices than images at a time, a batch of one."""
    options = ("--batch-size", "30", "--micro-batch", "7", "--slices", "30")
    train("bim_vit_test_growing", photos, tmp_path / "a", "--steps", "1", *options)
    train("mae_vit_test", photos, tmp_path / "b", "--steps", "2", "--batch-size", "1")
    assert all(record["lr"] > 0 for record in records(tmp_path / "a") + records(tmp_path / "b"))


def test_names_that_are_no_text_work(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / os.fsdecode(b"caf\xe9 \xff.png"))
    train("mae_vit_test", folder, tmp_path / "run", "--steps", "1")
    assert (tmp_path / "run" / "checkpoints" / "step-00000001").is_dir()


def test_layers_that_are_frozen_from_the_first_step_resume_bit_for_bit(photos, tmp_path):
    options = ("--save-every", "3", "--set", "schedule.t0=0.05", "--set", "schedule.warmup=0")
    assert_resumes("vitfreeze_vit_test", photos, tmp_path, 6, *options)


@pytest.mark.long
def test_killed_runs_resume_bit_for_bit(photos, tmp_path):
    """kill -9 in mid-epoch, at steps that are no checkpoint, the second time in a run that was itself resumed."""
    recipe, options = "bim_vit_test_growing", ("--steps", "20", "--micro-batch", "3", "--save-every", "5")
    train(recipe, photos, tmp_path / "whole", *options)
    killed_at = []
    given = ["--data", photos, "--out", tmp_path / "killed", "--log-every", "1", *options]
    for target in (3, 11):
        process = ForkedCommand(["-m", "bimkern.pretrain", recipe, *given])
        metrics = tmp_path / "killed" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.is_file() and metrics.read_text().count("\n") >= target:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        killed_at.append(records(tmp_path / "killed")[-1]["step"])
    train(recipe, photos, tmp_path / "killed", *options)
    assert all(step < 20 for step in killed_at)
    assert any(step % 5 for step in killed_at)
    assert [record["step"] for record in records(tmp_path / "killed")] == list(range(1, 21))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")

"""What a run survives, each fault really caused."""

import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace

import commands
import numpy as np
import pytest
import torch
from disk import full_disk, on_small_shm
from forked import ForkedCommand
from options import filled
from PIL import Image
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensor

from bimkern.data.batches import Batch
from bimkern.data.pil import PilLoader
from bimkern.data.workers import WorkerDied
from bimkern.mim.model import MIM
from bimkern.pretrain import main
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.optim.divergence import Diverged, Divergence

pytestmark = pytest.mark.usefixtures("without_pictures")

RECIPE = "bim_vit_test"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def arguments(photos, out, *options):
    return [RECIPE, "--data", str(photos), "--out", str(out), *filled(options, log_every=1)]


def train(photos, out, *options):
    main(arguments(photos, out, "--workers", "0", *options))


def start(photos, out, *options):
    """Start the command in a process of its own."""
    return ForkedCommand(["-m", "bimkern.pretrain", *arguments(photos, out, *options)], undrawn=True)


def records(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def comparable(out):
    return [(record["step"], record["loss_per_stage"]) for record in records(out)]


@pytest.fixture
def break_losses(monkeypatch):
    """Make the loss of stage 3 NaN, where `when(call)` says so for the call-th loss of that stage."""

    def install(when):
        calls = iter(range(10**6))
        plain = MIM.loss

        def loss(self, stage, *args):
            result = plain(self, stage, *args)
            if stage != 2 or isinstance(result, FakeTensor):  # the latter counts memory, and no loss
                return result
            return result * math.nan if when(next(calls)) else result

        monkeypatch.setattr(MIM, "loss", loss)

    return install


def test_a_nan_in_one_stage_skips_that_stage_alone(photos, tmp_path, break_losses, caplog):
    train(photos, tmp_path / "plain", "--steps", "8")
    break_losses(lambda call: call in (2, 3))
    train(photos, tmp_path / "broken", "--steps", "8")
    assert records(tmp_path / "broken")[-1]["skipped_updates"] == [0, 0, 2, 0]
    assert "stage 3 has a gradient that is not finite" in caplog.text
    for plain, broken in zip(records(tmp_path / "plain"), records(tmp_path / "broken"), strict=True):
        assert plain["loss_per_stage"][:2] == broken["loss_per_stage"][:2]  # the stages below never notice
    weights = checkpoints.load_latest(tmp_path / "broken" / "checkpoints").model
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_stage_that_stays_nan_sends_the_run_back_to_its_checkpoint(photos, tmp_path, break_losses, capsys):
    break_losses(lambda call: 12 <= call < 30)  # some weather that passes
    train(photos, tmp_path / "run", "--steps", "30", "--save-every", "10")
    assert "at step 10 of 30" in capsys.readouterr().out
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, 31))
    assert [record["step"] for record in records(tmp_path / "run") if record["loss"] is None] == list(range(11, 19))
    (dump,) = (tmp_path / "run").glob("diverged-*.safetensors")
    assert load_file(dump)["images"].shape == (8, 3, 32, 32)


def test_a_stage_that_stays_nan_is_found_between_logged_steps(photos, tmp_path, break_losses, capsys):
    break_losses(lambda call: 12 <= call < 30)
    train(photos, tmp_path / "run", "--steps", "30", "--save-every", "10", "--log-every", "1000")
    assert "at step 10 of 30" in capsys.readouterr().out
    (dump,) = (tmp_path / "run").glob("diverged-*.safetensors")
    assert dump.stem == "diverged-step-00000030"  # ten skipped updates after step 12 are noticed at the next tenth


@pytest.mark.parametrize("from_step", [0, 12], ids=["no checkpoint", "again"])
def test_a_run_that_cannot_recover_ends_and_says_so(photos, tmp_path, break_losses, capsys, from_step):
    break_losses(lambda call: call >= from_step)
    with pytest.raises(SystemExit) as stop:
        train(photos, tmp_path / "run", "--steps", "60", "--save-every", "10")
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert "no finite gradient for 10 updates, up to step" in error
    assert error.endswith(". A smaller --base-lr may help\n")


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        ("fp32", "A smaller --base-lr may help"),
        ("bf16", "A smaller --base-lr or --precision fp32 may help"),
        ("fp16", "A smaller --base-lr, --precision bf16 or --precision fp32 may help"),
    ],
)
def test_the_remedy_for_divergence_is_another_precision_only_if_there_is_a_safer_one(tmp_path, precision, remedy):
    with pytest.raises(Diverged, match=re.escape(f". {remedy}") + "$"):
        Divergence([], tmp_path, precision=precision).returned(10, 0, "no batch was kept")


def test_a_batch_that_has_no_room_does_not_end_the_run(tmp_path, caplog):
    batch = [Batch(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), *2 * [torch.arange(2)])]
    divergence = Divergence([], tmp_path, precision="fp32")
    with full_disk():
        assert divergence.dump(7, batch) == "there was no room for the last batch"
    assert "diverged-step-00000007.safetensors cannot be written" in caplog.text
    assert not list(tmp_path.iterdir())
    assert str(tmp_path / "diverged-step-00000007.safetensors") in divergence.dump(7, batch)


def ended(photos, out, capsys, *options):
    """Return exit code and message of a run that ends early on a disk too full for checkpoints."""
    with pytest.raises(SystemExit) as stop, full_disk(2**16):
        train(photos, out, *options)
    return stop.value.code, capsys.readouterr().err


def test_a_last_step_that_cannot_be_saved_is_said_and_the_same_command_resumes(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bimkern.train.checkpoint.async_saver._PAUSES", (0.01, 0.01))
    code, error = ended(photos, tmp_path / "run", capsys, "--steps", "3")
    assert code == 1
    assert "step 3, the last, is done; " in error
    assert "step-00000003 cannot be written ([Errno 27] File too large" in error
    assert "; nothing saved since step 0; the same command resumes the run\n" in error
    train(photos, tmp_path / "run", "--steps", "3")
    assert checkpoints.load_latest(tmp_path / "run" / "checkpoints").step == 3


def test_a_run_without_data_never_calls_saved_what_is_not(photos, tmp_path, capsys, monkeypatch):
    """The save of the last step that has data fails in the background, and again when it is required."""
    monkeypatch.setattr("bimkern.train.checkpoint.async_saver._PAUSES", (0.01,))
    plain = PilLoader.batches

    def batches(self, data, first, last):
        yield from plain(self, data, first, min(last, 4))
        raise WorkerDied("killed")

    monkeypatch.setattr(PilLoader, "batches", batches)
    code, error = ended(photos, tmp_path / "run", capsys, "--steps", "9", "--save-every", "4")
    assert code == 1
    assert "4 steps are done; " in error
    assert "; nothing saved since step 0; the same command resumes the run" in error
    assert "and saved" not in error


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """A finished run of 40 steps."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(photos, out, "--steps", "40")
    return out


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_resumes(photos, undisturbed, tmp_path, number, exit_code):
    process = start(photos, tmp_path / "run", "--steps", "40", "--workers", "2")
    wait_for(lambda: len(records(tmp_path / "run")) >= 5, process)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == exit_code, error
    assert f"{number.name}: finishing this step and saving" in output
    assert "the same command resumes the run" in error
    assert "Traceback" not in error
    saved = checkpoints.load_latest(tmp_path / "run" / "checkpoints").step
    assert saved == records(tmp_path / "run")[-1]["step"] < 40
    train(photos, tmp_path / "run", "--steps", "40")
    assert comparable(tmp_path / "run") == comparable(undisturbed)


def test_a_small_dev_shm_limits_nothing(photos, tmp_path):
    options = ("--steps", "5", "--batch-size", "64", "--workers", "2")  # batches of 192 KiB
    command = [sys.executable, "-m", "bimkern.pretrain", *arguments(photos, tmp_path / "run", *options)]
    done = commands.run(on_small_shm(command), timeout=120)
    assert done.returncode == 0, done.stderr
    assert "memory" not in done.stderr
    assert len(records(tmp_path / "run")) == 5


def test_a_second_interrupt_stops_at_once(photos, tmp_path):
    process = start(photos, tmp_path / "run", "--steps", "100000", "--batch-size", "64")
    wait_for(lambda: len(records(tmp_path / "run")) >= 1, process)
    process.send_signal(signal.SIGINT)
    deadline = threading.Timer(60, process.kill_all)
    deadline.start()
    assert any("SIGINT: finishing this step and saving" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    deadline.cancel()
    assert process.returncode == 130, error
    assert "interrupted; the same command resumes the run" in error


def refused(photos, out, capsys, *options):
    """Return what the command says when it refuses to resume in a folder."""
    with pytest.raises(SystemExit) as stop:
        train(photos, out, *filled(options, steps=3))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    return error


def test_a_second_run_in_one_folder_is_refused(photos, tmp_path, capsys):
    first = start(photos, tmp_path / "run", "--steps", "100000")
    wait_for(lambda: len(records(tmp_path / "run")) >= 1, first)
    error = refused(photos, tmp_path / "run", capsys, "--steps", "100000")
    first.kill()
    first.communicate()
    assert f"is in use by process {first.pid} on" in error


def test_a_killed_run_does_not_keep_its_folder(photos, tmp_path):
    first = start(photos, tmp_path / "run", "--steps", "60", "--workers", "2")  # which also have the folder's lock
    wait_for(lambda: len(records(tmp_path / "run")) >= 1, first)
    first.kill()
    first.communicate()
    assert len(records(tmp_path / "run")) < 60
    train(photos, tmp_path / "run", "--steps", "60")
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, 61))


def test_a_run_of_a_version_with_other_metrics_is_refused(photos, tmp_path, capsys):
    train(photos, tmp_path / "run", "--steps", "3", "--log-every", "1")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text().replace("loss_per_stage", "losses"))
    error = refused(photos, tmp_path / "run", capsys)
    assert f"{path} is of another version of bimkern, without loss_per_stage; choose another --out" in error


def test_checkpoints_of_another_recipe_are_refused_with_the_difference(photos, tmp_path, capsys):
    main(["mae_vit_test", "--data", str(photos), "--out", str(tmp_path / "mae"), "--steps", "3", "--workers", "0"])
    shutil.copytree(tmp_path / "mae" / "checkpoints", tmp_path / "copied" / "checkpoints")
    error = refused(photos, tmp_path / "copied", capsys)
    assert "the checkpoint of step 3" in error
    assert "recipe: mae_vit_test before, bim_vit_test now" in error
    assert "method.taps: [3] before, [0, 1, 2, 3] now" in error
    assert "; choose another --out" in error


def test_checkpoints_copied_from_a_run_with_other_settings_are_refused(photos, tmp_path, capsys):
    for name, seed in (("one", "1"), ("two", "2")):
        train(photos, tmp_path / name, "--steps", "3", "--seed", seed)
    shutil.copytree(tmp_path / "one" / "checkpoints", tmp_path / "two" / "checkpoints", dirs_exist_ok=True)
    assert "(run.seed: 1 before, 2 now)" in refused(photos, tmp_path / "two", capsys, "--seed", "2")


def test_a_checkpoint_that_belies_its_settings_is_refused(photos, tmp_path, capsys):
    """The settings are those of this run, the tensors those of a model of another width."""
    train(photos, tmp_path / "run", "--steps", "3")
    saved = checkpoints.load_latest(tmp_path / "run" / "checkpoints")
    model = dict(saved.model) | {"encoder.cls_token": torch.zeros(1, 1, 48)}
    checkpoints.save(tmp_path / "run" / "checkpoints", replace(saved, step=4, model=model), best_step=4)
    error = refused(photos, tmp_path / "run", capsys)
    assert "the checkpoint of step 4" in error
    assert "does not fit (" in error
    assert "encoder.cls_token" in error

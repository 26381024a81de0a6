"""A finished run goes on: one history, the schedule of the longer run, and the same bits when it is killed on the way."""

import json
import shutil

import pytest
import torch
from growing import records, repeatable, train, write_photos

from bimkern.data.batches import MicroBatches
from bimkern.data.step_layout import StepLayout
from bimkern.recipes import RECIPES
from bimkern.train.checkpoint import store as checkpoints

RECIPE = "bim_vit_test"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("files") / "photos", count=11)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A run of three steps."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train(RECIPE, photos, out, "--steps", "3")
    return out


@pytest.fixture(scope="module")
def extended(photos, finished, tmp_path_factory):
    """The same run, extended to six steps and then to eight."""
    out = tmp_path_factory.mktemp("extended") / "run"
    shutil.copytree(finished, out)
    for steps in ("6", "8"):
        train(RECIPE, photos, out, "--steps", steps, "--extend", "--save-every", "1")
    return out


def state(out, step):
    return checkpoints.load(out / "checkpoints" / f"step-{step:08d}")


def said(capsys, recipe, photos, out, *options):
    """The one line with which a command ends in exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train(recipe, photos, out, *options)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    return error


def test_one_history_with_the_rates_of_the_longer_runs(finished, extended):
    found = records(extended)
    assert [record["step"] for record in found] == list(range(1, 9))
    assert repeatable(extended)[:3] == repeatable(finished)
    config = RECIPES[RECIPE].config
    for record in found:
        total = 3 if record["step"] <= 3 else 6 if record["step"] <= 6 else 8
        layout = StepLayout.uniform(image_size=32, batch_size=8, micro_batch=8, num_steps=total)
        factor = config.schedule.factor(layout.progress(record["step"] - 1), 4, 4)
        assert record["lr"] == pytest.approx(factor * config.run.peak_lr)
    assert found[3]["lr"] > 5 * found[2]["lr"]  # it rises again
    assert [record["epoch"] for record in found] == [pytest.approx(8 * step / 11) for step in range(1, 9)]


def test_images_continue_where_they_were(photos, finished, tmp_path, monkeypatch):
    """Crops and order are those of a run that was as long from the start."""
    drawn, plain = [], MicroBatches.__getitem__

    def get(self, index):
        batch = plain(self, index)
        drawn.append(batch.draw_ids.tolist())
        return batch

    monkeypatch.setattr(MicroBatches, "__getitem__", get)
    shutil.copytree(finished, tmp_path / "run")
    train(RECIPE, photos, tmp_path / "run", "--steps", "6", "--extend")
    extension = drawn[-3:]
    train(RECIPE, photos, tmp_path / "whole", "--steps", "6")
    assert drawn[-3:] == extension
    assert not set(sum(extension, [])) & set(sum(drawn[-6:-3], []))


def test_the_checkpoint_says_when_the_run_was_extended(finished, extended):
    assert state(finished, 3).state["extended_at"] == []
    assert state(extended, 8).state["extended_at"] == [3, 6]
    assert json.loads((extended / "config.json").read_text())["run"]["steps"] == 8
    assert (extended / "exported" / "backbone-depth04").is_dir()


@pytest.mark.parametrize("kept", [3, 7], ids=["before the extension saved", "within it"])
def test_a_killed_extension_resumes_bit_for_bit(photos, extended, finished, tmp_path, kept):
    out, total = tmp_path / "run", {3: "6", 7: "8"}[kept]
    if kept == 3:
        shutil.copytree(finished, out)
        train(RECIPE, photos, out, "--steps", total, "--extend", "--save-every", "100")
        shutil.rmtree(out / "checkpoints" / "step-00000006")
    else:
        shutil.copytree(extended, out)
        shutil.rmtree(out / "checkpoints" / "step-00000008")
    train(RECIPE, photos, out, "--steps", total, "--extend", "--save-every", "1")
    assert repeatable(out) == repeatable(extended)[: int(total)]
    if kept == 7:
        ours, theirs = state(out, 8), state(extended, 8)
        assert ours.state["extended_at"] == [3, 6]
        assert all(torch.equal(ours.model[name], theirs.model[name]) for name in theirs.model)
        assert all(torch.equal(ours.optimizer[name], theirs.optimizer[name]) for name in theirs.optimizer)


def test_the_same_command_again_finds_it_finished(photos, extended, tmp_path, capsys):
    shutil.copytree(extended, tmp_path / "run")
    for options in (["--extend"], []):
        train(RECIPE, photos, tmp_path / "run", "--steps", "8", *options)
        assert "is finished, 8 steps; --extend continues it" in capsys.readouterr().out
    assert repeatable(tmp_path / "run") == repeatable(extended)


def test_layers_that_the_longer_run_would_not_freeze_yet_learn_again(photos, tmp_path):
    recipe = "vitfreeze_vit_test"
    train(recipe, photos, tmp_path / "run", "--steps", "8")
    schedule, depth = RECIPES[recipe].config.schedule, RECIPES[recipe].config.method.encoder.depth
    train(recipe, photos, tmp_path / "run", "--steps", "12", "--extend")
    frozen = [schedule.frozen_groups((step - 0.5) / total, depth) for total in (8, 12) for step in (8, 9)]
    assert frozen[0] > frozen[3] > 0  # some of the layers that were frozen at the end are so after it, and some are not
    nulls = [sum(loss is None for loss in record["loss_per_block"]) for record in records(tmp_path / "run")]
    taps = RECIPES[recipe].config.method.taps
    for step, found in enumerate(nulls, 1):
        groups = schedule.frozen_groups((step - 0.5) / (8 if step <= 8 else 12), depth)
        assert found == sum(tap + 1 < groups for tap in taps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "6"], "other settings (run.steps: 3 before, 6 now); --extend continues a finished run; or choose"),
        (["--steps", "2", "--extend"], "is of 3 steps already; more --epochs or --steps make it longer, these are 2"),
        (
            ["--steps", "6", "--seed", "1", "--extend"],
            "other settings (run.seed: 0 before, 1 now); choose another --out",
        ),
    ],
)
def test_what_is_no_extension_is_refused(photos, finished, tmp_path, capsys, options, message):
    shutil.copytree(finished, tmp_path / "run")
    assert message in said(capsys, RECIPE, photos, tmp_path / "run", *options)
    assert (tmp_path / "run" / "config.json").read_text() == (finished / "config.json").read_text()


def test_an_unfinished_run_is_refused(photos, extended, tmp_path, capsys):
    shutil.copytree(extended, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000008")
    message = "run has done 7 of its 8 steps; finish it first, with the options that it was begun with"
    assert message in said(capsys, RECIPE, photos, tmp_path / "run", "--steps", "10", "--extend")


def test_a_run_that_was_never_begun_is_refused(photos, tmp_path, capsys):
    message = "run has no checkpoint to continue from; leave it out"
    assert message in said(capsys, RECIPE, photos, tmp_path / "run", "--steps", "2", "--extend")


def test_image_sizes_at_shares_of_a_run_are_refused(photos, tmp_path, capsys):
    train("fastmim_p_vit_test", photos, tmp_path / "run", "--steps", "3")
    message = "changes its image size at shares of its length, so that the steps it has done would be others"
    assert message in said(capsys, "fastmim_p_vit_test", photos, tmp_path / "run", "--steps", "6", "--extend")

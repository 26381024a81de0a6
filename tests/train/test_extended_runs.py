"""A finished run is extended: one history, the schedule of the longer run, and the same bits after a kill."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from growing import records, repeatable, train, write_photos

from bimkern.data.batches import MicroBatches
from bimkern.data.step_layout import StepLayout
from bimkern.recipes import RECIPES
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.config.extension import extends
from bimkern.train.config.run import ConfigError
from bimkern.train.config.serialize import to_json

pytestmark = pytest.mark.usefixtures("without_pictures")

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
    for steps, every in (("6", "100"), ("8", "7")):
        train(RECIPE, photos, out, "--steps", steps, "--extend", "--save-every", every)
    return out


def state(out, step):
    return checkpoints.load(out / "checkpoints" / f"step-{step:08d}")


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
    """Crops and order are those of a run that was long from the start."""
    drawn, plain = [], MicroBatches.__getitem__

    def get(self, index):
        drawn.append((self, plain(self, index)))
        return drawn[-1][1]

    monkeypatch.setattr(MicroBatches, "__getitem__", get)
    shutil.copytree(finished, tmp_path / "run")
    train(RECIPE, photos, tmp_path / "run", "--steps", "6", "--extend")
    longer = replace(drawn[-1][0], layout=StepLayout.uniform(image_size=32, batch_size=8, micro_batch=8, num_steps=100))
    ids = [plain(longer, index).draw_ids.tolist() for index in range(6)]
    assert [batch.draw_ids.tolist() for _, batch in drawn[-3:]] == ids[3:]
    assert len({draw for step in ids for draw in step}) == 48  # none is ever drawn again


def test_the_checkpoint_says_when_the_run_was_extended(finished, extended):
    assert state(finished, 3).state["extended_at"] == []
    assert state(extended, 8).state["extended_at"] == [3, 6]
    options = json.loads((extended / "config.json").read_text())["run"]
    assert (options["steps"], options["extend"]) == (8, False)  # a new run may begin from this file
    assert (extended / "exported" / "backbone-depth04").is_dir()


def test_an_extension_killed_before_its_first_save_starts_again(photos, finished, extended, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    config = json.loads((extended / "config.json").read_text())
    config["run"]["steps"] = 6
    (out / "config.json").write_text(json.dumps(config))
    shutil.copy(extended / "metrics.jsonl", out)
    train(RECIPE, photos, out, "--steps", "6", "--extend")
    assert repeatable(out) == repeatable(extended)[:6]


def test_an_extension_killed_later_resumes_bit_for_bit(photos, extended, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(extended, out)
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    train(RECIPE, photos, out, "--steps", "8", "--extend")
    assert repeatable(out) == repeatable(extended)
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
    config = RECIPES[recipe].config
    for options in (["--steps", "4"], ["--steps", "6", "--extend"]):
        train(recipe, photos, tmp_path / "run", *options)
    frozen = [sum(loss is None for loss in record["loss_per_stage"]) for record in records(tmp_path / "run")]
    for step, found in enumerate(frozen):
        progress = (step + 0.5) / (4 if step < 4 else 6)
        groups = config.schedule.frozen_groups(progress, config.method.encoder.depth)
        assert found == sum(tap + 1 < groups for tap in config.method.taps)
    assert frozen[3] > frozen[4]


def test_what_is_no_extension_is_refused_and_changes_nothing(photos, finished, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for options, message in (
        (["--steps", "6"], "settings (run.steps: 3 before, 6 now); --extend continues a finished run; or choose"),
        (["--steps", "2", "--extend"], "already has 3 steps; raise --epochs or --steps, got 2"),
        (["--steps", "6", "--seed", "1", "--extend"], "other settings (run.seed: 0 before, 1 now); choose another"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train(RECIPE, photos, out, *options)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert message in error
        assert error.count("\n") == 1
        assert (out / "config.json").read_text() == (finished / "config.json").read_text()


def test_a_run_that_has_no_checkpoint_is_refused(photos, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(RECIPE, photos, tmp_path / "run", "--steps", "2", "--extend")
    assert "run has no checkpoint to continue from; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "done", "message"),
    [
        (RECIPE, 15, "runs/a has done 15 of its 20 steps; finish it first, with the options that it was begun with"),
        ("fastmim_p_vit_test", 20, "runs/a changes its image size at shares of its length, so that the steps it has"),
    ],
)
def test_what_a_longer_schedule_cannot_mean_is_refused(recipe, done, message):
    config = RECIPES[recipe].config
    longer = replace(config, run=replace(config.run, steps=40, extend=True))
    with pytest.raises(ConfigError, match=f"--extend: {message}"):
        extends(longer, to_json(config), done, 11, "runs/a")


def test_the_same_length_in_other_words_is_no_extension():
    config = RECIPES[RECIPE].config
    same = replace(config, run=replace(config.run, steps=None, epochs=20 * 8 / 16, extend=True))
    assert not extends(same, to_json(config), 15, 16, "runs/a")

"""run(config), as a program calls it: from any thread, several times, in one process."""

import subprocess
import sys
import threading
from dataclasses import replace

import commands
import pytest
from bad_files import encoded
from growing import write_photos

from bimkern.data import batches
from bimkern.data.source import SourceError
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.recipes import RECIPES
from bimkern.train.config.run import ConfigError
from bimkern.train.run import run
from bimkern.train.run_folder.folder import RunFolder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = RECIPES["mae_vit_test"].config
    options = {"data": write_photos(folder / "photos", count=4), "out": folder / "out", "workers": 0, "steps": 2}
    return replace(recipe, run=replace(recipe.run, batch_size=4, **options))


@pytest.fixture(scope="module")
def outcome(config):
    """Of a run in a thread that is not the main one, where no signal handler may be set."""
    found = []
    thread = threading.Thread(target=lambda: found.append(run(config)), daemon=True)
    thread.start()
    thread.join(120)
    return found[0]


def test_it_returns_what_the_run_ended_with(config, outcome):
    assert outcome.config == config
    assert outcome.folder.path == config.run.out
    assert [stage.name for stage in outcome.held_out] == ["after layer 4"]


def test_its_folder_is_free_again_and_then_belongs_to_one_run(config, outcome):
    first, second = RunFolder(config.run.out), RunFolder(config.run.out)
    first.open(config)
    with pytest.raises(ConfigError, match="is in use by another run of this process; choose another"):
        second.open(config)
    first.close()
    second.open(config)
    second.close()


def test_a_finished_run_keeps_its_pictures(config, outcome, capsys):
    picture = outcome.folder.pictures / "memory.png"
    before = picture.read_bytes(), picture.stat().st_mtime_ns
    assert run(config).held_out == outcome.held_out
    assert "is finished, 2 steps" in capsys.readouterr().out
    assert (picture.read_bytes(), picture.stat().st_mtime_ns) == before


def test_a_run_drafts_what_it_evaluates_as_what_it_trains_on(config, tmp_path, monkeypatch):
    kept, plain = [], batches.reductions

    def reductions(boxes, size, oversampling):
        kept.append(oversampling)
        return plain(boxes, size, oversampling)

    monkeypatch.setattr(batches, "reductions", reductions)
    run(replace(config, run=replace(config.run, out=tmp_path / "run", jpeg_draft=2.5)))
    assert len(kept) >= 3  # two steps and the held-out images
    assert set(kept) == {2.5}


def test_pictures_that_a_killed_run_did_not_draw_are_drawn(config, outcome):
    for picture in outcome.folder.pictures.iterdir():
        picture.unlink()
    run(config)
    assert (outcome.folder.pictures / "reconstruction.png").is_file()


def test_memory_that_cannot_be_estimated_is_a_warning(config, outcome, monkeypatch, caplog):
    def fail(*args):
        raise AssertionError("7 bytes are not proportional to any of them")

    monkeypatch.setattr("bimkern.train.memory.budget.MemoryEstimator.lower_bound", fail)
    run(config)
    assert "memory cannot be estimated for these pieces (AssertionError: 7 bytes are not" in caplog.text


def test_a_command_without_stdout_runs():
    done = commands.run(f"{sys.executable} -m bimkern.info >&-", shell=True, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_folders_train_as_the_folder_that_holds_them(config, tmp_path):
    folders = tuple(write_photos(tmp_path / name, count=4) for name in ("ants", "bees"))
    images = []
    for name, data in (("two", folders), ("one", tmp_path)):
        out = tmp_path.with_name(f"{tmp_path.name}-{name}")
        found = run(replace(config, run=replace(config.run, data=data, out=out))).held_out
        images.append(((out / "images.jsonl").read_bytes(), found))
    assert images[0] == images[1]
    inside = replace(config.run, data=folders, out=folders[1] / "run")
    with pytest.raises(ConfigError, match=r"lies inside --data .*bees: its pictures would be trained on"):
        run(replace(config, run=inside))


def test_held_out_images_are_those_of_the_source_and_must_be_readable(config, outcome, tmp_path):
    held_out = ImageFolder(paths=(write_photos(tmp_path / "held out", count=3),))
    apart = replace(config, source=ImageFolder(paths=(config.run.data,), held_out=held_out))
    apart = replace(apart, run=replace(apart.run, data=None, out=tmp_path / "out"))
    found = run(apart)
    assert [stage.name for stage in found.held_out] == ["after layer 4"]
    assert found.held_out != outcome.held_out
    assert found.history[-1]["held_out_loss_per_stage"] == pytest.approx([stage.loss for stage in found.held_out])
    assert "held_out_loss_per_stage" not in outcome.history[-1]
    assert (found.folder.path / "images.jsonl").read_bytes() == (outcome.folder.path / "images.jsonl").read_bytes()
    preview = encoded("TIFF", tiffinfo={254: 1})
    (tmp_path / "held out" / "camera.raw").write_bytes(preview)  # begins like an image and is none
    assert run(apart).held_out == found.held_out
    (tmp_path / "held out" / "01.jpg").write_bytes(b"")
    message = r"1 held-out images in .*held out cannot be read \(01.jpg: empty\); repair or remove them"
    with pytest.raises(SourceError, match=message):
        run(apart)

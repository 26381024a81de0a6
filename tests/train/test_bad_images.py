"""Runs on folders with bad images, and on images that change under them."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
from contextlib import contextmanager

import pytest
import torch
from bad_files import picture, write_bad_files, write_odd_files
from caches import empty_cache
from image_kinds import turned_files
from PIL import Image

from bimkern.data.dali import unusable
from bimkern.data.pil import PilLoader
from bimkern.data.workers import WorkerDied
from bimkern.files import jsonl
from bimkern.pretrain import main
from bimkern.train.checkpoint import store as checkpoints
from bimkern.train.pretraining import Pretraining

pytestmark = pytest.mark.usefixtures("without_pictures")

LOADERS = ["pil", pytest.param("dali", marks=pytest.mark.skipif(unusable() is not None, reason=f"DALI: {unusable()}"))]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        picture(60, 48, seed=i).save(folder / f"{i:02}.jpg")
    return folder


def arguments(photos, out, *options):
    return ["mae_vit_test", "--data", str(photos), "--out", str(out), "--log-every", "1", *options]


def train(photos, out, *options):
    main(arguments(photos, out, "--workers", "0", *options))


def refused(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        train(*args)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return stop.value.code, error


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def losses(out):
    return [(record["step"], record["loss_per_stage"]) for record in lines(out / "metrics.jsonl")]


@pytest.fixture
def at_step(monkeypatch):
    """Let something happen in mid-run, once, before the steps from some number on."""

    def install(number, happen):
        step, once = Pretraining.step, iter([happen])

        def watched(self, index, *arguments):
            if index >= number:
                next(once, lambda: None)()
            return step(self, index, *arguments)

        monkeypatch.setattr(Pretraining, "step", watched)

    return install


@pytest.mark.parametrize("loader", LOADERS)
def test_twenty_kinds_of_bad_file_are_quarantined_and_the_rest_is_trained_on(photos, tmp_path, loader, caplog):
    write_odd_files(photos)
    shutil.copytree(photos, tmp_path / "good")
    reasons = write_bad_files(photos)
    assert len(reasons) >= 20
    options = ("--steps", "4", "--loader", loader, "--max-bad-ratio", "0.6")
    train(photos, tmp_path / "mixed", *options)
    train(tmp_path / "good", tmp_path / "plain", *options)
    assert losses(tmp_path / "mixed") == losses(tmp_path / "plain")
    records = lines(tmp_path / "mixed" / "quarantine.jsonl")
    assert {record["file"] for record in records} == reasons.keys()
    assert all(reasons[record["file"]] in record["reason"] and record["step"] is None for record in records)
    assert lines(tmp_path / "mixed" / "metrics.jsonl")[-1]["images_quarantined"] == len(reasons)
    assert f"{len(reasons)} of {len(reasons) + 25} images quarantined (animated.png: animated, " in caplog.text
    assert lines(tmp_path / "mixed" / "images.jsonl") == lines(tmp_path / "plain" / "images.jsonl")


def test_non_image_files_are_named_by_suffix_and_are_no_fault(photos, tmp_path, capsys, caplog):
    for i in range(30):
        (photos / f"{i:02}.txt").write_text("a caption")
    (photos / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "empty.jpg").write_bytes(b"")
    for _ in range(2):
        train(photos, tmp_path / "run", "--steps", "2")
        line = f"12 images from {photos}; 31 non-image files skipped (30 .txt, 1 .heic); steps: 2"
        assert line in capsys.readouterr().out
        captions, heic, empty = lines(tmp_path / "run" / "quarantine.jsonl")
        assert (captions["suffix"], captions["files"]) == (".txt", 30)
        assert captions["examples"] == ["00.txt", "01.txt", "02.txt"]
        assert heic["examples"] == ["photo.HEIC"]
        assert "convert images of other formats to JPEG or PNG" in heic["reason"]
        assert (empty["file"], empty["reason"]) == ("empty.jpg", "empty")
    assert "1 of 13 images quarantined (empty.jpg: empty)" in caplog.text


def test_what_the_check_refuses_without_an_images_suffix_is_skipped_for_its_own_reason(photos, tmp_path, capsys):
    for i in range(12):
        picture().save(photos / f"{i:02}.dng", format="TIFF", tiffinfo={254: 1})
    content = (photos / "00.jpg").read_bytes()
    (photos / "whole").write_bytes(content)
    (photos / "cut.dat").write_bytes(content[:-99])
    picture(200, 200).save(photos / "large", format="PNG")
    for _ in range(2):
        train(photos, tmp_path / "run", "--steps", "2", "--max-pixels", "39999")
        line = f"13 images from {photos}; 14 non-image files skipped (12 .dng, 1 .dat, 1 without suffix); steps: 2"
        assert line in capsys.readouterr().out
        raw, cut, large = lines(tmp_path / "run" / "quarantine.jsonl")
        assert raw["files"] == 12
        assert raw["reason"].startswith("a preview, as in a camera's raw file; convert the photograph")
        assert cut["examples"] == ["cut.dat"]
        assert "truncated" in cut["reason"]
        assert large["reason"] == "200 x 200 pixels, more than --max-pixels 39999 in all"


def test_a_folder_of_nothing_but_raw_files_holds_no_image(photos, tmp_path, capsys):
    for path in photos.iterdir():
        path.unlink()
    picture().save(photos / "00.dng", format="TIFF", tiffinfo={254: 1})
    code, error = refused(capsys, photos, tmp_path / "run", "--steps", "2")
    assert code == 2
    assert "only other files (1 .dng); convert images of other formats to JPEG or PNG" in error


def test_large_images_are_trained_on_when_they_are_allowed(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # put back at the end
    picture(300, 200).save(photos / "large.png")
    train(photos, tmp_path / "small", "--steps", "2", "--max-pixels", "59999")
    (record,) = lines(tmp_path / "small" / "quarantine.jsonl")
    assert record["reason"] == "300 x 200 pixels, more than --max-pixels 59999 in all"
    train(photos, tmp_path / "large", "--steps", "2", "--max-pixels", "60000")
    assert lines(tmp_path / "large" / "quarantine.jsonl") == []
    train(photos, tmp_path / "again", "--steps", "2", "--max-pixels", "59999")  # though it was found to be good
    assert len(lines(tmp_path / "again" / "quarantine.jsonl")) == 1
    capsys.readouterr()
    code, error = refused(capsys, photos, tmp_path / "small", "--steps", "2")
    assert code == 2
    assert "run.max_pixels: 59999 before, 89478485 now" in error


@pytest.mark.parametrize("loader", LOADERS)
def test_a_resumed_run_turns_its_images_as_before(photos, tmp_path, loader, at_step):
    for name, (content, _) in turned_files(picture(60, 48)).items():
        (photos / name).write_bytes(content)
    options = ("--batch-size", "16", "--steps", "8", "--loader", loader)
    train(photos, tmp_path / "plain", *options)
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        train(photos, tmp_path / "run", *options)
    assert stop.value.code == 128 + signal.SIGTERM
    assert len(losses(tmp_path / "run")) == 6
    train(photos, tmp_path / "run", *options)
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")


def test_too_many_bad_files_end_a_run_before_it_starts(photos, tmp_path, capsys):
    for name in ("00.jpg", "01.jpg"):
        (photos / name).write_bytes(b"")
    code, error = refused(capsys, photos, tmp_path / "run", "--steps", "2")
    assert code == 2
    assert f"2 of 12 images cannot be read, more than --max-bad-ratio 0.1; {tmp_path}/run/quarantine.jsonl" in error
    train(photos, tmp_path / "run", "--steps", "2", "--max-bad-ratio", "0.2")
    assert len(lines(tmp_path / "run" / "quarantine.jsonl")) == 2


@pytest.mark.parametrize("loader", LOADERS)
def test_a_file_deleted_during_a_run_is_quarantined(photos, tmp_path, loader, at_step, capfd, caplog):
    out = tmp_path / "run"
    at_step(5, (photos / "07.jpg").unlink)
    main(arguments(photos, out, "--steps", "30", "--save-every", "30", "--workers", "1", "--loader", loader))
    assert "1 of 12 images quarantined (07.jpg: No such file" in caplog.text
    (record,) = lines(out / "quarantine.jsonl")
    assert record["file"] == "07.jpg"
    assert record["step"] > 0
    assert [step for step, _ in losses(out)] == list(range(1, 31))
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_whose_images_vanish_saves_stops_and_resumes_when_they_are_back(photos, tmp_path, at_step, capfd):
    out, away = tmp_path / "run", tmp_path / "away"
    options = ("--steps", "40", "--save-every", "1000")
    at_step(5, lambda: photos.rename(away))
    with pytest.raises(SystemExit) as stop:
        main(arguments(photos, out, "--workers", "1", *options))
    assert stop.value.code == 1
    error = capfd.readouterr().err
    assert "images cannot be read, more than --max-bad-ratio 0.1" in error
    assert "once they can be read again, or with a larger --max-bad-ratio, the same command resumes the run" in error
    assert "Traceback" not in error
    saved = checkpoints.load_latest(out / "checkpoints").step
    assert saved == losses(out)[-1][0] > 0
    away.rename(photos)
    train(photos, out, *options)
    assert lines(out / "quarantine.jsonl") == []
    assert [step for step, _ in losses(out)] == list(range(1, 41))


def test_a_killed_loader_process_changes_nothing(photos, tmp_path, at_step, caplog):
    out = tmp_path / "run"
    at_step(5, lambda: multiprocessing.active_children()[0].kill())
    main(arguments(photos, out, "--steps", "30", "--workers", "2"))
    assert "it is restarted at the same images" in caplog.text
    train(photos, tmp_path / "plain", "--steps", "30")
    assert losses(out) == losses(tmp_path / "plain")
    ours, theirs = (checkpoints.load_latest(folder / "checkpoints").model for folder in (out, tmp_path / "plain"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_loader_that_keeps_dying_ends_the_run_with_its_state_saved(photos, tmp_path, capsys, monkeypatch):
    plain = PilLoader.batches

    def batches(self, data, first, last):
        yield from plain(self, data, first, min(last, 7))
        raise WorkerDied("killed")

    monkeypatch.setattr(PilLoader, "batches", batches)
    code, error = refused(capsys, photos, tmp_path / "run", "--steps", "20")
    assert code == 1
    assert "the loader died 3 times at the same images (killed)" in error
    assert "7 steps are done and saved; the same command resumes the run" in error
    assert checkpoints.load_latest(tmp_path / "run" / "checkpoints").step == 7


def change(photos, how):
    path = photos / "03.jpg"
    if how == "gone":
        path.unlink()
    elif how == "with other content":
        picture(60, 48, seed=99).save(path)
    else:
        shutil.copy(path, photos / "new one.jpg")


@pytest.mark.parametrize(
    ("how", "file"), [("gone", "03.jpg"), ("with other content", "03.jpg"), ("new", "new one.jpg")]
)
def test_a_resumed_run_refuses_other_images_and_says_what_changed(photos, tmp_path, capsys, how, file):
    train(photos, tmp_path / "run", "--steps", "2")
    capsys.readouterr()
    change(photos, how)
    code, error = refused(capsys, photos, tmp_path / "run", "--steps", "2")
    assert code == 2
    assert f"has changed since the run in {tmp_path}/run began: 1 {how} ({file}); put the images back" in error


def test_a_start_that_never_trained_fixes_nothing(photos, tmp_path):
    train(photos, tmp_path / "run", "--steps", "2")
    for leftover in ("config.json", "metrics.jsonl"):
        (tmp_path / "run" / leftover).unlink()
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    change(photos, "new")
    train(photos, tmp_path / "run", "--steps", "2")
    assert len(lines(tmp_path / "run" / "images.jsonl")) == 13


def test_a_torn_line_of_the_quarantine_is_ended_before_the_next(photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"")
    train(photos, tmp_path / "run", "--steps", "2")
    path = tmp_path / "run" / "quarantine.jsonl"
    path.write_text(path.read_text() + '[]\n{"file": "to')
    (photos / "03.jpg").write_bytes(b"")
    train(photos, tmp_path / "run", "--steps", "2", "--max-bad-ratio", "0.5")
    assert [record["file"] for record in jsonl.read(path)] == ["bad.jpg", "03.jpg"]


def test_a_name_of_two_lines_is_reported_in_one(photos, tmp_path, capsys):
    train(photos, tmp_path / "run", "--steps", "2")
    (photos / "00.jpg").rename(photos / "a\nb.jpg")
    capsys.readouterr()
    _, error = refused(capsys, photos, tmp_path / "run", "--steps", "2")
    assert r"1 new (a\nb.jpg)" in error


def test_the_same_images_elsewhere_and_touched_are_the_same(photos, tmp_path, capsys):
    train(photos, tmp_path / "run", "--steps", "2")
    shutil.copytree(photos, tmp_path / "copied", copy_function=shutil.copyfile)
    train(tmp_path / "copied", tmp_path / "run", "--steps", "2")
    assert "is finished, 2 steps" in capsys.readouterr().out


def test_a_file_that_went_bad_between_runs_is_quarantined_until_it_is_back(photos, tmp_path, caplog):
    train(photos, tmp_path / "run", "--steps", "2")
    content = (photos / "03.jpg").read_bytes()
    (photos / "03.jpg").write_bytes(content[:300])
    train(photos, tmp_path / "run", "--steps", "2")
    (record,) = lines(tmp_path / "run" / "quarantine.jsonl")
    assert (record["file"], record["step"]) == ("03.jpg", None)
    (photos / "03.jpg").write_bytes(content)
    train(photos, tmp_path / "run", "--steps", "2")
    assert lines(tmp_path / "run" / "quarantine.jsonl") == []
    assert "1 images released from quarantine: they are as recorded again (03.jpg)" in caplog.text


def test_checkpoints_of_other_images_are_refused(photos, tmp_path, capsys):
    train(photos, tmp_path / "run", "--steps", "2")
    change(photos, "new")
    (tmp_path / "run" / "images.jsonl").unlink()
    capsys.readouterr()
    code, error = refused(capsys, photos, tmp_path / "run", "--steps", "2")
    assert code == 2
    assert "its checkpoints were trained on other images than images.jsonl lists" in error


def test_a_run_that_waits_for_its_images_says_so(photos, tmp_path, caplog):
    for i in range(12):
        picture(1500, 1200, seed=i).save(photos / f"{i:02}.jpg")
    train(photos, tmp_path / "run", "--steps", "6", "--batch-size", "12")
    assert "of the time is spent waiting for images. The loader alone reaches" in caplog.text
    assert caplog.text.count("waiting for images") == 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, "interrupted; the same command resumes the run"),
        (signal.SIGTERM, "stopped by SIGTERM; the same command resumes the run"),
    ],
)
def test_a_check_that_is_interrupted_resumes_where_it_was(photos, tmp_path, monkeypatch, capfd, number, words, workers):
    monkeypatch.setenv("XDG_CACHE_HOME", empty_cache(tmp_path / "cache"))
    for i in range(600):
        (photos / f"copy {i:03}.jpg").symlink_to(photos / "00.jpg")
    picture(1200, 1200).save(photos / "00.jpg")
    before = waited_for()
    with signal_at_first_result(tmp_path / "cache", number), pytest.raises(SystemExit) as stop:
        main(arguments(photos, tmp_path / "run", "--steps", "2", "--workers", str(workers)))
    assert stop.value.code == 128 + number
    assert capfd.readouterr().err == f"python -m bimkern.pretrain: {words}\n"
    assert waited_for() == before
    (cache,) = (tmp_path / "cache").rglob("*.jsonl")
    assert 0 < len(lines(cache)) < 612


def waited_for():
    """Return the threads and processes that a process waits for when it ends."""
    return [thread for thread in threading.enumerate() if not thread.daemon], multiprocessing.active_children()


@contextmanager
def signal_at_first_result(cache, number):
    """Send this process a signal as soon as the check has cached what it found, unless the body ends before."""
    ended = threading.Event()

    def watch():
        while not any(path.stat().st_size for path in cache.rglob("*.jsonl")):
            if ended.wait(0.01):
                return
        os.kill(os.getpid(), number)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join(60)

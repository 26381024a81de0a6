"""Bad images, and images that change, in runs whose image size changes."""

import json
import shutil

import pytest
from bad_files import picture, write_bad_files, write_odd_files
from growing import records, register, train, write_photos

from bimkern.data.dali import unusable
from bimkern.train.pretraining import Pretraining

pytestmark = pytest.mark.usefixtures("without_pictures", "without_estimates")

LOADERS = ["pil", pytest.param("dali", marks=pytest.mark.skipif(unusable() is not None, reason=f"DALI: {unusable()}"))]
CHANGES = (10, 14)  # steps of 16 before which the size changes


@pytest.fixture
def photos(tmp_path, monkeypatch):
    register(monkeypatch, "growing", steps=16, save_every=CHANGES[0])
    return write_photos(tmp_path / "photos")


def quarantined(out):
    return [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]


def losses(out):
    return [(record["step"], record["image_size"], record["loss_per_stage"]) for record in records(out)]


def vanishes_in(monkeypatch, step, path):
    """Have a file vanish before a step computes."""
    plain = Pretraining.step

    def spoil(self, index, batch, memory):
        if index == step:
            path.unlink()
        return plain(self, index, batch, memory)

    monkeypatch.setattr(Pretraining, "step", spoil)


@pytest.mark.parametrize("loader", LOADERS)
def test_bad_files_are_quarantined_and_the_rest_is_trained_on(photos, tmp_path, loader):
    write_odd_files(photos)
    shutil.copytree(photos, tmp_path / "good")
    reasons = write_bad_files(photos)
    options = ("--loader", loader, "--max-bad-ratio", "0.6")
    train("growing", photos, tmp_path / "mixed", *options)
    train("growing", tmp_path / "good", tmp_path / "plain", *options)
    assert {size for _, size, _ in losses(tmp_path / "mixed")} == {32, 48, 64}
    assert losses(tmp_path / "mixed") == losses(tmp_path / "plain")
    assert {record["file"] for record in quarantined(tmp_path / "mixed")} == reasons.keys()


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("step", [CHANGES[0] - 1, CHANGES[0]])
def test_a_file_that_vanishes_about_a_change_is_quarantined_until_it_is_back(
    photos, tmp_path, monkeypatch, loader, step
):
    train("growing", photos, tmp_path / "plain", "--loader", loader)
    shutil.copy(photos / "07.jpg", tmp_path / "away.jpg")
    for attempt in range(3):  # on a busy machine a loader may have read all images before the file vanishes
        run = tmp_path / f"run {attempt}"
        shutil.copy(tmp_path / "away.jpg", photos / "07.jpg")
        with monkeypatch.context() as patch:
            vanishes_in(patch, step, photos / "07.jpg")
            train("growing", photos, run, "--loader", loader)
        if (run / "quarantine.jsonl").exists():
            break
    (record,) = quarantined(run)
    assert record["file"] == "07.jpg"
    assert step <= record["step"] < 16
    assert [size for _, size, _ in losses(run)] == [32] * 10 + [48] * 4 + [64] * 2
    assert losses(run) != losses(tmp_path / "plain")
    # Back again, the run continues from the change as if the file had never been away.
    shutil.move(tmp_path / "away.jpg", photos / "07.jpg")
    shutil.rmtree(run / "checkpoints" / "step-00000016")
    train("growing", photos, run, "--loader", loader)
    assert quarantined(run) == []
    assert losses(run) == losses(tmp_path / "plain")


@pytest.mark.parametrize("how", ["gone", "with other content", "new"])
def test_a_run_that_stopped_at_a_change_refuses_other_images(photos, tmp_path, capsys, how):
    train("growing", photos, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000016")
    path = photos / "03.jpg"
    if how == "gone":
        path.unlink()
    elif how == "new":
        shutil.copy(path, photos / "more.jpg")
    else:
        picture(60, 48, seed=99).save(path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train("growing", photos, tmp_path / "run")
    assert stop.value.code == 2
    assert f"has changed since the run in {tmp_path}/run began: 1 {how} (" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints" / "step-00000016").exists()

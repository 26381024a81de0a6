"""The learning rate of every step, as the metrics have it, where a schedule counts in epochs."""

import math
from dataclasses import replace

import pytest
from growing import records, train, write_photos

from bimkern.mim.schedule import Cosine
from bimkern.recipes import RECIPES, Recipe

pytestmark = pytest.mark.usefixtures("without_pictures")

NUM_PHOTOS, BASE_LR = 12, 1.6e-2
WARMUP, FLOOR = 4, 1e-4  # epochs, learning rate


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("files") / "photos", NUM_PHOTOS)


@pytest.fixture(autouse=True)
def recipe(monkeypatch):
    schedule = Cosine(warmup_epochs=WARMUP, final_lr=FLOOR)
    config = replace(RECIPES["mae_vit_test"].config, recipe="in_epochs", schedule=schedule)
    monkeypatch.setitem(RECIPES, "in_epochs", Recipe(summary="for a test", config=config))


def expected(record, batch, epochs):
    """The rule of the published programs, in the middle of a step."""
    peak, epoch = BASE_LR * batch / 256, record["epoch"] - batch / NUM_PHOTOS / 2
    if epoch < WARMUP:
        return peak * epoch / WARMUP
    return FLOOR + (peak - FLOOR) * 0.5 * (1 + math.cos(math.pi * (epoch - WARMUP) / (epochs - WARMUP)))


@pytest.mark.parametrize(("batch", "epochs"), [(8, 8), (8, 16), (4, 8)])
def test_warmup_and_floor_stay_where_the_run_gets_longer_and_the_batch_smaller(photos, tmp_path, batch, epochs):
    options = ("--steps", "None", "--epochs", str(epochs), "--batch-size", str(batch))
    train("in_epochs", photos, tmp_path / "run", *options)
    found = records(tmp_path / "run")
    assert len(found) == epochs * NUM_PHOTOS / batch
    assert [record["lr"] for record in found] == pytest.approx([expected(record, batch, epochs) for record in found])


def test_a_run_shorter_than_its_warmup_rises_to_its_end_and_says_so(photos, tmp_path, capsys):
    train("in_epochs", photos, tmp_path / "run", "--steps", "3")
    rates = [record["lr"] for record in records(tmp_path / "run")]
    assert rates == pytest.approx([5e-4 * share for share in (1 / 6, 3 / 6, 5 / 6)])
    assert "peak learning rate 5.00e-04, after 2 of 2 epochs" in capsys.readouterr().out

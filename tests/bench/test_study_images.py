"""The images of studies: parts share no pixels, and a photograph cannot be told by what is easy to read."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from bench.studies import photographs
from bench.studies.data import all_pixels, preprocessing, write_files
from bench.studies.digits import Digits
from bench.studies.fine_tuning import write_layers
from bench.studies.methods import methods
from bench.studies.photographs import Photographs, cut, strip_boxes
from bench.studies.study import STUDIES, Trial
from bench.studies.trial import run_trial
from bimkern.data.source import SourceError
from bimkern.evaluate.backbone import Backbone, read_backbone
from bimkern.evaluate.labeled import read_labeled
from bimkern.evaluate.linear import LinearProbe
from bimkern.evaluate.neighbors import knn_accuracies


@pytest.fixture(scope="module")
def data():
    return Photographs(crops=24).load()


def accuracies(split, features_of):
    train, test = (features_of(part) for part in (split.train, split.test))
    labeled = (train, split.train.labels, test, split.test.labels)
    return knn_accuracies(*labeled, (10,))[10], LinearProbe(min_steps=100).accuracy(*labeled)


def test_all_photographs_have_as_many_crops(data):
    assert len(data.whole.classes) >= 12
    assert torch.bincount(data.whole.train.labels).unique().tolist() == [48]
    assert torch.bincount(data.whole.test.labels).unique().tolist() == [24]
    assert data.whole.chance == pytest.approx(1 / len(data.whole.classes))
    assert len(data.selection.train) == len(data.selection.test) == len(data.whole.train) / 2


def test_pixels_do_not_tell_photographs_apart(data):
    chance = data.whole.chance
    for side in (8, 32):  # means of pixels, which are less sensitive to where a crop lies
        knn, linear = accuracies(data.whole, lambda part, side=side: all_pixels(part, side))
        assert knn < 2.5 * chance
        assert linear < 1.5 * chance


def test_gray_levels_do_not_tell_photographs_apart(data):
    for part in (data.whole.train, data.whole.test):
        levels = all_pixels(part, 64).sort(dim=1).values
        assert (levels - levels[0]).abs().max() == 0  # all histograms are the same


def test_without_equal_histograms_gray_levels_would_tell_photographs_apart(monkeypatch):
    monkeypatch.setattr(photographs, "equalized", lambda crop, generator: np.clip(crop, 0, 255))
    levels = accuracies(Photographs(crops=8).load().whole, lambda part: all_pixels(part, 64).sort(dim=1).values)
    assert max(levels) > 0.25


def test_an_encoder_can_tell_photographs_apart(tmp_path):
    study = replace(STUDIES["photographs"], source=Photographs(crops=16), probe_steps=100)
    result = run_trial(study, Trial(method="scratch"), tmp_path)
    assert max(result.linear.values()) > 3 * result.chance  # even one that was not trained


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (48, 240), (512, 512)])
def test_strips_are_disjoint_with_a_gap(size):
    boxes = strip_boxes(*size)
    seen = np.zeros(size, dtype=int)
    axis = int(size[1] >= size[0])
    for top, left, bottom, right in boxes:
        assert min(bottom - top, right - left) >= 48
        seen[top:bottom, left:right] += 1
    assert seen.max() == 1
    assert [box[axis] - before[axis + 2] for before, box in pairwise(boxes)] == [16] * 3
    assert seen.sum() / seen.size > 0.7
    assert all(0 <= edge <= size[i % 2] for box in boxes for i, edge in enumerate(box))


def test_a_photograph_without_room_for_a_crop_is_not_cut():
    assert strip_boxes(47, 500) == []
    assert strip_boxes(100, 239) == []
    assert len(strip_boxes(48, 240)) == 4


def test_crops_lie_within_their_box():
    photograph = np.full((100, 200), 255.0, dtype=np.float32)
    photograph[10:70, 30:100] = np.random.default_rng(0).uniform(0, 100, (60, 70))
    crops = cut(photograph, (10, 30, 70, 100), 20, seed="a")
    assert crops.shape == (20, 1, 64, 64)
    # White would come in as a block of the highest ranks at an edge; noise has them everywhere.
    edges = torch.cat([crops[..., 0, :].flatten(), crops[..., -1, :].flatten(), crops[..., 0].flatten()])
    assert edges.mean() == pytest.approx(127.5, abs=8)
    assert torch.equal(crops, cut(photograph, (10, 30, 70, 100), 20, seed="a"))
    assert not torch.equal(crops, cut(photograph, (10, 30, 70, 100), 20, seed="b"))
    assert len(cut(photograph, (0, 100, 100, 200), 4, seed="a")) == 0  # white


def test_crops_are_turned_and_mirrored():
    rows, columns = np.mgrid[:80, :80].astype(np.float32)
    crops = cut(2 * rows + columns, (0, 0, 80, 80), 64, seed="a")[:, 0]
    corners = {tuple(crop[[0, 0, -1, -1], [0, -1, 0, -1]].argsort().tolist()) for crop in crops}
    assert len(corners) == 8


def test_a_folder_of_photographs(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(generator.integers(256, size=(60, 300, 3), dtype=np.uint8)).save(tmp_path / name)
    Image.fromarray(np.zeros((300, 300), dtype=np.uint8)).save(tmp_path / "flat.png")
    Image.fromarray(generator.integers(256, size=(30, 30), dtype=np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    assert Photographs(folder=tmp_path, crops=4).load().whole.classes == ("a.png", "b.png")
    assert f"{tmp_path}: torn.jpg is left out: " in capsys.readouterr().err
    (tmp_path / "a.png").unlink()
    message = (
        rf"^{tmp_path}: at least 2 photographs must show something in each of 4 strips, got 1; add some of at least "
    )
    with pytest.raises(SourceError, match=message + r"240 x 48 pixels$"):
        Photographs(folder=tmp_path, crops=4).load()


def test_at_most_a_hundred_photographs_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "_CLASSES", 2)
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png", "d.png"):
        Image.fromarray(generator.integers(256, size=(48, 240), dtype=np.uint8)).save(tmp_path / name)
    assert Photographs(folder=tmp_path, crops=2).load().whole.classes == ("a.png", "c.png")


def test_parts_of_the_digits_hold_every_class():
    data = Digits().load()
    assert (len(data.whole.train), len(data.whole.test)) == (898, 899)
    assert (len(data.selection.train), len(data.selection.test)) == (598, 300)
    for split in (data.whole, data.selection):
        for part in (split.train, split.test):
            assert torch.bincount(part.labels).min() > len(part) / 12
    assert min(accuracies(data.whole, lambda part: all_pixels(part, 8))) > 0.85


def test_the_first_layers_are_written_as_they_are(tmp_path):
    config = methods(32)["MAE"].encoder
    encoder = config.module(config).requires_grad_(False)
    backbone = Backbone(encoder=encoder, norms={}, images=preprocessing(config))
    write_layers(tmp_path / "layers", backbone, 4)
    written, images = read_backbone(tmp_path / "layers"), torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert written.config.depth == 4
    assert written.images == backbone.images
    assert torch.equal(written.features(images, [4])[4], backbone.features(images, [4])[4])


def test_files_hold_what_is_in_memory(tmp_path):
    data = Digits(count=60).load()
    images = preprocessing(methods(32)["MAE"].encoder)
    write_files(tmp_path / "images", data, images)
    written = read_labeled(tmp_path / "images" / "whole")
    assert written.classes == data.whole.classes
    assert written.test.labels.tolist() == data.whole.test.labels.tolist()
    (batch,) = data.whole.train.batches(64, images, 3)
    with Image.open(tmp_path / "images" / "whole" / "images-train" / "000007.png") as image:
        assert torch.equal(torch.from_numpy(np.array(image)), batch[7, 0])
    write_files(tmp_path / "images", data, images)  # as they are there
    assert len(list((tmp_path / "images" / "selection" / "images-val").iterdir())) == len(data.selection.test)

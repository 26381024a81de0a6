"""Labeled images: which are tested, and how they are cut out."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from interop import import_or_skip
from PIL import Image

from bimkern.data.decoding import decode
from bimkern.data.source import SourceError
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.evaluate.checked_images import random_crops
from bimkern.evaluate.errors import EvaluationError
from bimkern.evaluate.labeled import Labeled, central_crop, in_memory, load_digits, read_images, read_labeled
from bimkern.exporters.trained import Preprocessing

IMAGES = Preprocessing(image_size=32, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)


def write(folder, names, size=(40, 36)):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * number, 0, 0)).save(path)


def reds(part):
    """The red of every image of a part: which one it is."""
    return torch.cat([batch[:, 0, 0, 0] for batch in part.batches(2, IMAGES, 3)]).tolist()


def test_one_folder_is_split_the_same_way_wherever_it_lies(tmp_path):
    names = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(5)]
    write(tmp_path / "a", names)
    write(tmp_path / "b", names)
    first, second = (read_labeled(tmp_path / folder) for folder in "ab")
    assert first.classes == ("cat", "dog")
    assert first.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert first.test.labels.tolist() == [0, 0, 1, 1]
    assert sorted(reds(first.train) + reds(first.test)) == [10 * number for number in range(10)]
    assert all((red >= 50) == label for red, label in zip(reds(first.test), first.test.labels, strict=True))
    assert reds(first.test) == reds(second.test)
    write(tmp_path / "b", ["dog/more.png"])
    kept = {red for red in reds(read_labeled(tmp_path / "b").test) if red < 50}
    assert kept == {red for red in reds(first.test) if red < 50}  # what is added to one class leaves the others


def test_train_and_val_are_kept_apart_and_a_list_says_the_same(tmp_path):
    write(tmp_path, ["train/a/1.png", "train/b/2.png", "train/b/3.png", "val/b/4.png"])
    data = read_labeled(tmp_path)
    assert (reds(data.train), reds(data.test), data.test.labels.tolist()) == ([0, 10, 20], [30], [1])
    assert data.chance == 1  # b is what most training images are
    (tmp_path / "train.csv").write_text("path,label\ntrain/a/1.png,x\ntrain/b/2.png,y\n")
    listed = tmp_path / "lists"
    listed.mkdir()
    for name, text in (("train", "1.png,x\n2.png,y\n"), ("val", "3.png,y\n")):
        (listed / f"{name}.csv").write_text(f"path,label\n{text}")
    write(listed, ["1.png", "2.png", "3.png"])
    assert read_labeled(listed).test.labels.tolist() == [1]
    for folder, red in ((tmp_path, 30), (listed, 20)):
        images = read_images(folder)
        assert images.read(range(images.count), IMAGES, 3)[:, 0, 0, 0].tolist() == [red]


class Sized(ImageFolder):
    """A source whose truth value is that of a number which says nothing here."""

    def __len__(self):
        return 0


def test_held_out_images_count_whatever_the_truth_value_of_their_source(tmp_path, monkeypatch):
    write(tmp_path, ["train/1.png", "train/2.png", "val/3.png"])
    held_out = Sized(paths=(tmp_path / "val",))
    source = ImageFolder(paths=(tmp_path / "train",), held_out=held_out)
    monkeypatch.setattr("bimkern.evaluate.labeled.labeled_images", lambda path: source)
    assert read_images(tmp_path).count == 1


def test_images_need_no_classes(tmp_path):
    write(tmp_path, ["1.png", "deep/er/2.png", "3.png"])
    images = read_images(tmp_path)
    assert images.count == 3
    assert images.read([2, 0], IMAGES, 3)[:, 0, 0, 0].tolist() == [10, 0]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["a/1.png", "a/2.png"], SourceError, "labels must name at least two classes, got a"),
        (["a/1.png", "a/2.png", "b/3.png"], EvaluationError, "class b must have at least 2 images, to split, got 1"),
        (["1.png", "2.png"], SourceError, "1.png lies in no class folder"),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], SourceError, "label 'c', which no training image has"),
    ],
)
def test_says_what_is_wrong_with_a_folder(tmp_path, names, error, message):
    write(tmp_path, names)
    with pytest.raises(error, match=message):
        read_labeled(tmp_path)


def test_no_message_has_a_password_of_an_address(tmp_path, monkeypatch):
    write(tmp_path, ["a/1.png", "a/2.png", "b/3.png"])
    source = ImageFolder(paths=(tmp_path,))
    monkeypatch.setattr("bimkern.evaluate.labeled.labeled_images", lambda path: source)
    with pytest.raises(EvaluationError, match="class b must have at least 2 images") as error:
        read_labeled(Path("https://me:secret@host/photos"))
    assert "secret" not in str(error.value)


def damage(path):
    path.write_bytes(path.read_bytes()[:60])


def test_damaged_images_are_named_and_left_out(tmp_path, caplog):
    write(tmp_path, ["train/a/1.png", "train/b/2.png", "train/b/3.png", "train/b/4.png", "val/b/5.png"])
    damage(tmp_path / "train/b/3.png")
    data = read_labeled(tmp_path, max_bad_ratio=0.3)
    assert (reds(data.train), data.train.labels.tolist(), reds(data.test)) == ([0, 10, 30], [0, 1, 1], [40])
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "bimkern.evaluate"]
    assert re.fullmatch(r".*train: 1 of 4 images cannot be read \(b/3\.png: .*\); they are left out", warning)
    message = r"train: 1 of 4 images cannot be read \(b/3\.png: .*\), more than --max-bad-ratio 0\.1; replace or rem"
    with pytest.raises(EvaluationError, match=message):
        read_labeled(tmp_path)
    for name in ("a/1", "b/2", "b/4"):
        damage(tmp_path / f"train/{name}.png")
    with pytest.raises(EvaluationError, match=r"train: 4 of 4 images cannot be read .*, and 1 more"):
        read_labeled(tmp_path, max_bad_ratio=0.99)


def test_an_image_that_is_damaged_after_the_check_is_named(tmp_path):
    write(tmp_path, ["train/a/1.png", "train/b/2.png", "val/b/3.png"])
    data = read_labeled(tmp_path)
    damage(tmp_path / "train/b/2.png")
    with pytest.raises(EvaluationError, match=r"train: b/2\.png: .*; replace or remove it"):
        reds(data.train)


def test_random_crops_are_those_of_the_epoch_and_image_whatever_the_batches(tmp_path, caplog):
    names = [f"train/{kind}/{number}.png" for kind in "ab" for number in range(3)]
    write(tmp_path, [*names, "val/b/9.png"])
    part = read_labeled(tmp_path).train

    def crops(size, epochs=2):
        shown = list(random_crops(part.images, IMAGES, epochs=epochs, batch_size=size, seed=3))
        return torch.cat([pixels for pixels, _ in shown]), torch.cat([indices for _, indices in shown])

    pixels, indices = crops(5)
    assert (pixels.shape, pixels.dtype) == ((12, 3, 32, 32), torch.uint8)
    assert sorted(indices.tolist()) == sorted([*range(6), *range(6)])
    assert (pixels[:, 0, 0, 0] == 10 * indices).all()  # the index is that of the image, and so of its label
    for size in (1, 12):
        assert all(map(torch.equal, crops(size), (pixels, indices)))
    assert torch.equal(crops(5, epochs=1)[0], pixels[:6])
    damage(tmp_path / "train/a/1.png")
    replaced, of = crops(5)
    assert 1 not in of
    assert torch.equal(replaced[indices != 1], pixels[indices != 1])
    assert "1 of 6 images cannot be read (a/1.png: " in caplog.text


def test_nothing_to_learn_or_to_test_on_is_refused():
    part = in_memory(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]))
    empty = in_memory(torch.zeros(0, 1, 8, 8), torch.tensor([], dtype=torch.int64))
    with pytest.raises(EvaluationError, match="classes must be at least 2, got 1"):
        Labeled(classes=("a",), train=part, test=part)
    with pytest.raises(EvaluationError, match="the test part must hold an image, got none"):
        Labeled(classes=("a", "b"), train=part, test=empty)


def test_the_digits_are_the_same_halves_each_time_with_all_classes_in_both():
    first, again = load_digits(), load_digits()
    assert (len(first.train), len(first.test), len(first.classes)) == (898, 899, 10)
    assert torch.equal(first.train.labels, again.train.labels)
    for part in (first.train, first.test):
        assert part.labels.bincount().min() >= 85
    (batch,) = first.train.batches(1000, IMAGES, 3)
    assert (batch.shape, batch.dtype, batch.max()) == ((898, 3, 32, 32), torch.uint8, 255)


@pytest.mark.parametrize("size", [(61, 47), (47, 61), (36, 36), (20, 90)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", [32, 64])
def test_the_crop_equals_timms(size, interpolation, side):
    timm = import_or_skip("timm")
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, file = Image.fromarray(noise), io.BytesIO()
    image.save(file, "PNG")
    file.seek(0)
    transform = timm.data.create_transform((3, side, side), interpolation=interpolation, crop_pct=0.875)
    theirs = transform.transforms[1](transform.transforms[0](image))
    images = Preprocessing(image_size=side, interpolation=interpolation, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert np.array_equal(central_crop(decode(file), images), np.asarray(theirs).transpose(2, 0, 1))


def test_a_photograph_is_turned_upright(tmp_path):
    image, file = Image.new("RGB", (40, 60)), io.BytesIO()
    image.paste((255, 255, 255), (0, 0, 40, 30))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 3  # by 180 degrees
    image.save(file, "PNG", exif=exif)
    file.seek(0)
    crop = central_crop(decode(file), IMAGES)
    assert (crop[:, :10].max(), crop[:, -10:].min()) == (0, 255)

"""Labels of class folders and lists, and that they follow the images through both loaders."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from bad_files import picture
from checked import checked_images, labels_by_file
from interop import import_or_skip
from PIL import ExifTags, Image

from bimkern.data import pil
from bimkern.data.augment import CenterCrop, RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.labels import labeled_images, read_labels
from bimkern.data.listing import list_images
from bimkern.data.loader import choose_loader
from bimkern.data.resilient_loader import ResilientLoader
from bimkern.data.source import SourceError
from bimkern.data.sources.listed import ListedImages
from bimkern.data.step_layout import StepLayout

GRAY = {"dark": 40, "light": 200, "white": 250}


@pytest.fixture
def classes(tmp_path):
    """Three folders of four plain images, whose level tells their class."""
    for name, level in GRAY.items():
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (20, 16), (level, level, level)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def write_csv(folder, rows, name="list.csv"):
    path = folder / name
    path.write_text("\n".join(["path,label", *(",".join(row) for row in rows)]))
    return path


def labels_of(path):
    source = labeled_images(path)
    return read_labels(source, list_images(source).files)


def test_class_folders_and_both_kinds_of_list_give_the_same_labels(classes):
    folders = labels_of(classes)
    rows = [(file, file.split("/")[0]) for file in folders.files]
    (classes / "list.jsonl").write_text("\n".join(json.dumps({"path": p, "label": label}) for p, label in rows))
    assert folders.classes == tuple(GRAY)
    for other in (labels_of(write_csv(classes, rows)), labels_of(classes / "list.jsonl")):
        assert (other.classes, labels_by_file(other)) == (folders.classes, labels_by_file(folders))


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_val_beside_train_is_held_out_with_the_classes_of_train(classes, tmp_path_factory, name):
    root = tmp_path_factory.mktemp("split")
    shutil.copytree(classes, root / "train")
    shutil.copytree(classes / "white", root / name / "white")
    source = labeled_images(root)
    train = read_labels(source, list_images(source).files)
    held_out = read_labels(source.held_out, list_images(source.held_out).files, train.classes)
    assert set(held_out.numbers.tolist()) == {2}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("dark/0.png", "a"), ("dark/./0.png", "b")], r"list.csv, line 3: dark/0.png is listed twice; list every"),
        (
            [("dark/0.png", "a"), ("light/../dark/0.png", "b")],
            r"line 3: light/../dark/0.png is listed twice, also as dark/0.png; list every image once",
        ),
        ([("dark/9.png", "a")], r"list.csv, line 2: dark/9.png does not exist; paths are relative to "),
        ([("dark/0.png", "")], r"list.csv, line 2: dark/0.png has no label; every line needs one"),
        ([("dark/0.png", "a"), ("dark/1.png", "a")], r"list.csv: labels must name at least two classes, got a"),
    ],
)
def test_a_list_says_what_is_wrong(classes, rows, message):
    with pytest.raises(SourceError, match=message):
        labels_of(write_csv(classes, rows))


def test_a_path_in_two_spellings_is_listed_twice_and_a_link_is_another_file(classes, tmp_path):
    (tmp_path / "link").symlink_to(classes / "dark")
    (classes / "dark" / "alias.png").symlink_to("0.png")
    absolute = classes / "dark" / "0.png"
    wrong = rf"{re.escape(str(absolute))} is listed twice, also as dark/0\.png; list every image once"
    with pytest.raises(SourceError, match=f"line 3: {wrong}"):
        labels_of(write_csv(classes, [("dark/0.png", "a"), (str(absolute), "b")]))
    rows = [{"path": "dark/0.png"}, {"path": str(absolute)}]
    (classes / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SourceError, match=f"line 2: {wrong}"):
        list_images(labeled_images(classes / "list.jsonl"))
    for other in ("dark/alias.png", str(tmp_path / "link" / "0.png")):
        assert len(labels_of(write_csv(classes, [("dark/0.png", "a"), (other, "b")])).files) == 2


def test_an_unknown_label_an_image_outside_of_classes_and_another_file_are_refused(classes, tmp_path):
    source = labeled_images(classes)
    files = list_images(source).files
    with pytest.raises(SourceError, match=r"dark/0.png has label 'dark', which no training image has"):
        read_labels(source, files, ["light", "white"])
    (classes / "bare.png").write_bytes((classes / "dark/0.png").read_bytes())
    with pytest.raises(SourceError, match=r"bare.png lies in no class folder; put it into one, or give a .csv list"):
        labels_of(classes)
    with pytest.raises(SourceError, match=r"a.jpg is not a folder"):
        labels_of(tmp_path / "a.jpg")
    (tmp_path / "bad.jsonl").write_text("[1]")
    with pytest.raises(
        SourceError, match=r"bad.jsonl, line 1: expected a JSON object with path, and label if it has one"
    ):
        ListedImages(list=tmp_path / "bad.jsonl").files()


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_follow_the_image_that_is_shown_where_one_is_quarantined(classes, loader, workers):
    source = labeled_images(classes)
    listing = list_images(source)
    images = readable(listing, check(listing, workers=0))
    labels = torch.from_numpy(read_labels(source, images.files).of(images.files))
    for i in range(4):
        (classes / "dark" / f"{i}.png").write_bytes(b"broken")
    layout = StepLayout.uniform(image_size=8, batch_size=12, micro_batch=6, num_steps=4)
    data = MicroBatches(images=images, augment=RandomResizedCrop(), seed=3, layout=layout)
    faults = {}
    steps = ResilientLoader(loader(workers), data, lambda found, step: faults.update(found)).steps(0, 4)
    levels = torch.tensor(list(GRAY.values()))
    for batch in (batch for step in steps for batch in step):
        assert torch.equal(batch.images[:, 0, 0, 0].long(), levels[labels[batch.sample_ids]])
        assert not (labels[batch.sample_ids] == 0).any()
    assert len(faults) == 4


def test_the_center_crop_is_the_resized_image_cropped(tmp_path):
    picture(512, 384, seed=1).save(tmp_path / "a.png")
    listing = list_images(labeled_images(tmp_path))
    images = readable(listing, check(listing, workers=0))
    layout = StepLayout.one_epoch(image_size=168, batch_size=4, num_images=1)
    ours = pil.decode(MicroBatches(images=images, augment=CenterCrop(), seed=0, layout=layout), 0).images[0]
    with Image.open(tmp_path / "a.png") as image:
        whole = image.convert("RGB").resize((256, 192), Image.Resampling.BICUBIC)
    theirs = np.asarray(whole.crop((44, 12, 212, 180))).transpose(2, 0, 1).copy()
    assert torch.equal(ours, torch.from_numpy(theirs))
    with pytest.raises(ValueError, match=r"CenterCrop: ratio must be in \(0, 1\], got 1.5"):
        CenterCrop(ratio=1.5)


def test_a_center_crop_of_the_whole_image_stays_inside_however_the_file_is_turned(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        picture(58, 58, seed=1).save(tmp_path / f"{orientation}.png", exif=exif)
    images = checked_images(tmp_path)
    layout = StepLayout.one_epoch(image_size=28, batch_size=8, num_images=8)  # 28 * (58 / 28) is above 58
    crops = MicroBatches(images=images, augment=CenterCrop(ratio=1.0), seed=0, layout=layout)
    batch = pil.decode(crops, 0)
    upright = batch.images[batch.sample_ids == 0][0].flip(2)
    (mirrored,) = batch.images[batch.sample_ids == 1]
    assert (mirrored.int() - upright.int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["pil", "dali"])
@pytest.mark.parametrize("ratio", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_center_crop_is_that_of_timm(tmp_path, name, ratio, interpolation):
    """But for rounding, and for the filter's overshoot: Pillow clips it between passes whose order it chooses."""
    timm = import_or_skip("timm")
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    sizes = [(500, 375), (375, 500), (281, 217), (97, 60), (64, 64)]
    for i, size in enumerate(sizes):
        levels = torch.randint(64, 192, (12, 12, 3), dtype=torch.uint8).numpy()
        Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
    images = checked_images(tmp_path)
    layout = StepLayout.one_epoch(image_size=64, batch_size=5, num_images=5)
    data = MicroBatches(
        images=images, augment=CenterCrop(ratio=ratio, interpolation=interpolation), seed=0, layout=layout
    )
    (batch,) = choose_loader(name, torch.device("cpu"), 0)[0].batches(data, 0, 1)
    resize, crop, *_ = timm.data.create_transform((3, 64, 64), interpolation=interpolation, crop_pct=ratio).transforms
    for ours, sample_id in zip(batch.images, batch.sample_ids.tolist(), strict=True):
        with Image.open(images.path(sample_id)) as image:
            theirs = np.asarray(crop(resize(image))).transpose(2, 0, 1).astype(int)
        inside = np.s_[:, 1:-1, 1:-1]  # a crop at the edge of its image is another one in DALI
        difference = np.abs(ours.numpy() - theirs)[inside]
        assert difference.max() <= 2
        assert difference.mean() < 0.3


@pytest.mark.parametrize("num_images", [1, 4, 11, 12])
def test_one_epoch_shows_every_image_once(classes, num_images):
    listing = list_images(labeled_images(classes))
    images = readable(listing, check(listing, workers=0)).only(range(num_images))
    layout = StepLayout.one_epoch(image_size=8, batch_size=4, num_images=num_images)
    data = MicroBatches(images=images, augment=CenterCrop(), seed=0, layout=layout)
    shown = [i for step in range(layout.num_steps) for i in data[layout.index(step)].sample_ids.tolist()]
    assert sorted(shown) == list(range(num_images))

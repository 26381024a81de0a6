"""The example of segmentation, end to end, and its parts."""

import contextlib
import json
import re

import numpy as np
import pytest
import torch
from interop import import_or_skip
from PIL import Image
from torch import nn

import_or_skip("torchvision")
from torchvision.transforms import v2  # noqa: E402

from examples.segmentation import __main__ as example  # noqa: E402
from examples.segmentation.__main__ import SegmentationOptions, predict, segmentation  # noqa: E402
from examples.segmentation.folder import IGNORED, read_folder  # noqa: E402
from examples.transfer import shapes  # noqa: E402
from examples.transfer.errors import TransferError  # noqa: E402


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("backbone", ["vit_run", "swin_export"])
def test_it_trains_tests_and_draws(tmp_path, request, capsys, backbone):
    torch.manual_seed(0)
    options = SegmentationOptions(
        backbone=request.getfixturevalue(backbone), data="shapes", out=tmp_path / "out", steps=24, batch_size=4,
        lr=4e-3, workers=0, device="cpu",
    )  # fmt: skip
    options.out.mkdir()
    segmentation(options)
    metrics = json.loads((options.out / "metrics.json").read_text())
    losses = metrics["loss"]
    assert sum(losses[-6:]) / 6 < 0.9 * sum(losses[:3]) / 3
    assert len(metrics["iou"]) == 4
    assert 0 <= metrics["mean_iou"] <= 1
    assert f"mean IoU {metrics['mean_iou']:.2%}" in capsys.readouterr().out
    assert (options.out / "predictions.png").read_bytes().startswith(b"\x89PNG")
    assert (options.out / "model.pt").is_file()


def options_of(request, data, out, **given):
    out.mkdir()
    backbone = request.getfixturevalue("vit_run")
    given = {"steps": 1, "batch_size": 2, "image_size": 64, "workers": 0, "device": "cpu"} | given
    return SegmentationOptions(backbone=backbone, data=str(data), out=out, **given)


@pytest.mark.usefixtures("few")
def test_lines_of_classes_are_counted_and_a_class_that_is_nowhere_has_no_score(tmp_path, request, monkeypatch):
    shapes.draw_masks(tmp_path / "data")
    monkeypatch.setattr(example, "WIDTH", 8)
    (tmp_path / "data/classes.txt").write_text("background\ncircle\nsquare\ntriangle\nof two words\n\n")
    plain = example.test
    monkeypatch.setattr(example, "test", lambda *given: plain(*given).index_fill(0, torch.tensor(4), torch.nan))
    segmentation(options_of(request, tmp_path / "data", tmp_path / "out"))
    metrics = json.loads((tmp_path / "out/metrics.json").read_text(), parse_constant=pytest.fail)
    assert len(metrics["iou"]) == 5
    assert metrics["iou"][4] is None
    assert torch.load(tmp_path / "out/model.pt")["classify.2.bias"].shape == (5,)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("ignore_zero", "value"), [(False, 2), (True, 3)])
def test_a_mask_with_a_class_too_many_is_named_before_training(tmp_path, request, ignore_zero, value):
    shapes.draw_masks(tmp_path / "data")
    for mask in (tmp_path / "data/masks").rglob("*.png"):
        Image.fromarray(np.full((64, 64), value - 1, np.uint8)).save(mask)
    wrong = tmp_path / "data/masks/val/0002.png"
    Image.fromarray(np.full((64, 64), value, np.uint8)).save(wrong)
    options = options_of(request, tmp_path / "data", tmp_path / "out", num_classes=2, ignore_zero=ignore_zero)
    expected = f"{wrong} has class {value}, beyond the number of classes, 2; raise --num-classes, or list all"
    with pytest.raises(TransferError, match=re.escape(expected)):
        segmentation(options)


class Left(nn.Module):
    """A network that names the left half of what it sees class 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        bright = images.mean(dim=1, keepdim=True)
        logits = torch.cat([bright, -bright], dim=1)
        return logits, logits


def test_a_long_image_is_cut_into_windows_that_overlap():
    image = torch.ones(3, 40, 140)
    image[:, :, 70:] = -1
    model = Left()
    found = predict(model, image, 64)
    assert found.shape == (40, 140)
    assert torch.equal(found, (torch.arange(140) >= 70).long().expand(40, -1))
    # The short side becomes 64, the long one 224: windows begin at 0, 43, 86, 129 and, the last, at 160.
    assert model.seen == [(1, 3, 64, 64)] * 5


class Sure(nn.Module):
    """A network that names each pixel by itself, without a doubt: the brighter ones class 0."""

    def forward(self, images):
        logits = 1000 * images[:, :1].sign()
        return torch.cat([logits, -logits], dim=1), logits


def test_a_pixel_counts_as_much_in_several_windows_as_in_one():
    image = torch.randn(3, 40, 140)
    small = v2.functional.resize(image[None], [64, 224])
    expected = example.resized(Sure()(small)[0].softmax(1), (40, 140)).argmax(1)[0]
    assert torch.equal(predict(Sure(), image, 64), expected)


def test_no_pixel_of_a_large_image_is_passed_over():
    image = torch.tensor([8.0, -1, -1, -1]).repeat(32).expand(3, 128, -1)  # bright on average; every fourth column is
    assert not predict(Sure(), image, 32).any()


def test_255_counts_nowhere_also_where_0_does(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    Image.new("RGB", (4, 1)).save(tmp_path / "images/train/0.png")
    Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8)).save(tmp_path / "masks/train/0.png")
    for zero_is_ignored, classes in ((True, [255, 0, 1, 255]), (False, [0, 1, 2, 255])):
        pairs = read_folder(tmp_path, "train", nn.Identity(), zero_is_ignored=zero_is_ignored)
        assert pairs.classes(0).tolist() == [classes]
        pairs.check(3)


def test_an_image_without_a_pixel_that_counts_has_no_loss():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.randint(3, (2, 4, 4))
    labels[0, 0] = IGNORED
    plain = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED)
    torch.testing.assert_close(example.mean_error(logits, labels), plain)
    nothing = example.mean_error(logits, torch.full_like(labels, IGNORED))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()


def test_pixels_that_count_nowhere_do_not_change_the_score():
    image = torch.ones(3, 64, 64)
    labels = torch.zeros(64, 64, dtype=torch.int64)
    labels[:16] = 1
    labels[32:] = IGNORED
    ious = example.test(Left(), [(image, labels)], 3, 64)
    assert ious[:2].tolist() == [0.5, 0.0]
    assert ious[2].isnan()


def write_pair(folder, part, image, mask):
    for kind, picture in (("images", image), ("masks", mask)):
        (folder / kind / part).mkdir(parents=True, exist_ok=True)
        picture.save(folder / kind / part / "0.png")
    return read_folder(folder, part, nn.Identity())


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "LA", "RGB", "RGBA"])
def test_masks_of_any_kind_are_class_numbers(tmp_path, mode):
    values = np.random.default_rng(torch.randint(2**31, ()).item()).integers(0, 2, (5, 7)).astype(np.uint8)
    mask = Image.fromarray(values)
    if mode == "1":
        mask = Image.fromarray(values.astype(bool))
    elif mode == "P":
        mask.putpalette([200, 0, 0, 0, 200, 0])
    elif mode == "I;16":
        mask = Image.fromarray(values.astype(np.uint16))
    else:
        mask = mask.convert(mode)
    pairs = write_pair(tmp_path, "train", Image.new("RGB", (7, 5)), mask)
    with Image.open(tmp_path / "masks/train/0.png") as written:
        assert written.mode == mode
    labels = pairs.classes(0)
    assert labels.dtype == torch.uint8  # so that padding can be 255
    assert np.array_equal(labels, values)
    pairs.check(2)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("RGB", (7, 5), (1, 0, 0)), r"0\.png has 3 channels that differ; a mask must have one, of class"),
        (Image.fromarray(np.full((5, 7), 256, np.uint16)), r"0\.png has class 256; masks must have numbers up to 255"),
        (Image.new("L", (5, 7)), r"0\.png must be as large as .*0\.png, got 5x7 and 7x5"),
        (Image.new("L", (7, 5), IGNORED), r"masks/val: no pixel counts; all of them are 255, or are ignored"),
    ],
)
def test_masks_that_cannot_be_learned_are_refused_before_training(tmp_path, mask, message):
    pairs = write_pair(tmp_path, "val", Image.new("RGB", (7, 5)), mask)
    with pytest.raises(TransferError, match=message):
        pairs.check(2)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("given", "batch"), [({"batch_size": 1}, 1), ({"micro_batch": 1}, 2), ({"batch_size": 5, "micro_batch": 2}, 5)]
)
def test_one_image_at_a_time_is_refused_before_training(tmp_path, request, given, batch):
    """A batch norm sees one pixel of each image."""
    options = options_of(request, "shapes", tmp_path / "out", **given)
    with pytest.raises(TransferError, match=rf"need at least 2 images at a time, got 1 of a batch of {batch}; choose"):
        segmentation(options)


@pytest.mark.parametrize(
    ("size", "micro_batch", "works"),
    [(2, None, True), (4, 9, True), (4, 2, True), (5, 3, True), (4, 3, False), (1, None, False), (1, 4, False)],
)
def test_every_part_of_a_batch_needs_two_images(size, micro_batch, works):
    with contextlib.nullcontext() if works else pytest.raises(TransferError):
        example._check_batch(size, micro_batch)


@pytest.mark.parametrize("num_classes", [1, 4, 20, 21, 150, 255])
def test_every_class_has_a_color_of_its_own(num_classes):
    colors = example.class_colors(num_classes)
    shown = {colors(number / max(1, colors.N - 1), bytes=True) for number in range(num_classes)}
    assert len(shown) == num_classes

"""The example of detection, end to end."""

import json
import re
import sys

import pytest
import torch
from drawn import kept_figures
from interop import import_or_skip
from PIL import Image

import_or_skip("torchvision")
import_or_skip("pycocotools")
from torchvision.transforms import v2  # noqa: E402

from bimkern.optional import Unusable  # noqa: E402
from examples.detection import __main__ as example  # noqa: E402
from examples.detection.__main__ import Options, detection  # noqa: E402
from examples.detection.coco import CocoImages  # noqa: E402
from examples.transfer import shapes  # noqa: E402
from examples.transfer.errors import TransferError  # noqa: E402


@pytest.fixture(autouse=True)
def own_operators(monkeypatch):
    """Undo replace_missing after a test."""
    from torchvision.models.detection import roi_heads
    from torchvision.ops import boxes, poolers

    for module, name in ((boxes, "nms"), (poolers, "roi_align"), (roi_heads, "roi_align")):
        monkeypatch.setattr(module, name, getattr(module, name))


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("backbone", ["vit_run", "swin_export"])
def test_it_trains_tests_and_draws(tmp_path, request, capsys, backbone):
    torch.manual_seed(0)
    options = Options(
        backbone=request.getfixturevalue(backbone), data="shapes", out=tmp_path / "out", steps=16, batch_size=4,
        lr=2e-3, workers=0, device="cpu",
    )  # fmt: skip
    options.out.mkdir()
    detection(options)
    metrics = json.loads((options.out / "metrics.json").read_text())
    losses = metrics.pop("loss")
    assert sum(losses[-6:]) / 6 < 0.9 * sum(losses[:2]) / 2
    assert metrics.keys() == {"box_ap", "box_ap50", "mask_ap", "mask_ap50"}
    assert all(0 <= value <= 1 for value in metrics.values())
    assert "step 16/16  loss" in capsys.readouterr().out
    assert (options.out / "predictions.png").read_bytes().startswith(b"\x89PNG")
    weights = torch.load(options.out / "model.pt", weights_only=True)
    assert [name for name in weights if name.startswith("backbone.pyramid.encoder.patch_embed.")]


@pytest.mark.usefixtures("few")
def test_without_pycocotools_it_says_what_to_install(tmp_path, monkeypatch, vit_run):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    message = r"^detection needs pycocotools: not installed; pip install 'bimkern\[transfer\]'$"
    with pytest.raises(Unusable, match=message):
        detection(Options(backbone=vit_run, data="shapes", out=tmp_path / "out", steps=1))


@pytest.mark.usefixtures("few")
def test_parts_of_other_categories_are_refused(tmp_path, vit_run):
    """A label is a position in the list of categories, which would stand for another class in the other part."""
    shapes.draw_coco(tmp_path / "data")
    file = tmp_path / "data/annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["categories"].insert(0, {"id": 0, "name": "objects"})
    file.write_text(json.dumps(content))
    with pytest.raises(TransferError, match=r"^train and val must have the same categories; only one of them has 0$"):
        detection(Options(backbone=vit_run, data=str(tmp_path / "data"), out=tmp_path / "out", steps=1))


IMAGE = {"id": 0, "file_name": "0.png", "height": 8, "width": 8}


@pytest.fixture
def part(tmp_path):
    """A data set of one image with an instance, and what writes changes of it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "val").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "val/0.png")
    (tmp_path / "annotations").mkdir()
    box = [2, 2, 4, 4]
    instance = {"id": 1, "image_id": 0, "category_id": 3, "bbox": box, "area": 16}
    instance["segmentation"] = [[2, 2, 6, 2, 6, 6, 2, 6]]

    def write(instances=({},), **changes):
        content = {
            "images": [IMAGE],
            "categories": [{"id": 3, "name": "square"}],
            "annotations": [instance | changed for changed in instances],
        }
        (tmp_path / "annotations/instances_val.json").write_text(json.dumps(content | changes))
        return tmp_path

    return write


@pytest.mark.parametrize("left_out", [{}, {"iscrowd": None}, {"iscrowd": "0"}, {"area": None}])
def test_an_instance_need_not_say_that_it_is_no_crowd_nor_how_large_it_is(part, left_out):
    images = CocoImages(part([left_out]), "val", None)
    assert images.coco.anns[1]["area"] == 16
    target = images[0][1]
    assert target["boxes"].tolist() == [[2, 2, 6, 6]]
    assert images.average_precision([{**target, "scores": torch.ones(1), "masks": target["masks"][:, None].float()}])


def test_an_image_that_teaches_nothing_need_not_be_there(part):
    images = [IMAGE, IMAGE | {"id": 1, "file_name": "1.png"}]
    assert len(CocoImages(part(images=images), "val", v2.Identity())) == 1
    with pytest.raises(TransferError, match="lists an image that is not there"):
        CocoImages(part(images=images), "val", None)


@pytest.mark.parametrize(
    ("instances", "changes", "message"),
    [
        ((), {}, "instances_val.json has no instances"),
        (({"iscrowd": 1},), {}, "instances_val.json has no instances"),
        (({"segmentation": []},), {}, "instances_val.json: instance 1 has no segmentation, which a Mask R-CNN needs"),
        (({"category_id": 4},), {}, "instances_val.json: instance 1 has category_id 4, which is not listed"),
        (({"image_id": 4},), {}, "instances_val.json: instance 1 has image_id 4, which is not listed"),
        (({},), {"images": [IMAGE | {"file_name": "1.png"}]}, "instances_val.json lists an image that is not there: "),
        (({},), {"images": [IMAGE | {"file_name": None}]}, "instances_val.json: image 0 has no file_name"),
        (({},), {"images": [{"id": 0, "file_name": "0.png"}]}, "instances_val.json: image 0 has no height"),
        (({},), {"images": [{"file_name": "0.png"}]}, "instances_val.json is not in COCO's format (KeyError('id'))"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_training(part, instances, changes, message):
    with pytest.raises(TransferError, match=re.escape(message)):
        CocoImages(part(instances, **changes), "val", None)


def test_a_file_that_is_no_json_and_a_part_of_two_years_are_refused(part):
    folder = part()
    file = folder / "annotations/instances_val.json"
    file.write_text("[]")
    with pytest.raises(TransferError, match=r"instances_val\.json is not in COCO's format \(AssertionError"):
        CocoImages(folder, "val", None)
    file.write_text("walk")
    with pytest.raises(TransferError, match=r"instances_val\.json is not in COCO's format \(JSONDecodeError"):
        CocoImages(folder, "val", None)
    file.with_name("instances_val2014.json").touch()
    with pytest.raises(
        TransferError, match=r"must have one part val, got instances_val\.json, instances_val2014\.json;"
    ):
        CocoImages(folder, "val", None)


@pytest.mark.filterwarnings("error::UserWarning")  # of torchvision, where there is nothing to draw
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("score", [0.1, 0.9])
def test_the_place_that_an_odd_number_of_pictures_leaves_is_empty(tmp_path, monkeypatch, score):
    shapes.draw_coco(tmp_path)
    images, figures = CocoImages(tmp_path, "val", None), kept_figures(monkeypatch, example)
    images.images = images.images[:3]
    found = [
        {**target, "scores": torch.full((len(target["labels"]),), score), "masks": target["masks"][:, None].float()}
        for _, target in (images[index] for index in range(3))
    ]
    monkeypatch.setattr(example, "predict", lambda *given: iter(found))
    example.draw(None, images, tmp_path / "picture.png")
    assert [bool(axes.images) for axes in figures[0].axes] == [True, True, True, False]
    assert not any(axes.axison for axes in figures[0].axes)

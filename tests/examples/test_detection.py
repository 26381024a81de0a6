"""The example of detection, end to end."""

import json
import sys

import pytest
import torch
from interop import import_or_skip

import_or_skip("torchvision")
import_or_skip("pycocotools")
from bimkern.optional import Unusable  # noqa: E402
from examples.detection.__main__ import Options, detection  # noqa: E402
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

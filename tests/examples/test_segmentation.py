"""The example of segmentation, end to end, and its parts."""

import json

import pytest
import torch
from interop import import_or_skip
from torch import nn

import_or_skip("torchvision")
from examples.segmentation import __main__ as example  # noqa: E402
from examples.segmentation.__main__ import SegmentationOptions, predict, segmentation  # noqa: E402
from examples.segmentation.folder import IGNORED  # noqa: E402


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


def test_pixels_that_count_nowhere_do_not_change_the_score():
    image = torch.ones(3, 64, 64)
    labels = torch.zeros(64, 64, dtype=torch.int64)
    labels[:16] = 1
    labels[32:] = IGNORED
    ious = example.test(Left(), [(image, labels)], 3, 64)
    assert ious[:2].tolist() == [0.5, 0.0]
    assert ious[2].isnan()

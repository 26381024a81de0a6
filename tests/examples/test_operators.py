"""Suppression and RoIAlign in plain torch equal torchvision's, of which only Python runs on every machine."""

import importlib

import pytest
import torch
from interop import import_or_skip

torchvision = import_or_skip("torchvision")
from torchvision.ops import box_iou, boxes, poolers  # noqa: E402

from examples.detection import operators  # noqa: E402

published = importlib.import_module("torchvision.ops.roi_align")._roi_align.__wrapped__  # not compiled


def regions(count, images, height, width):
    """Regions inside a map, [K, 5]."""
    first, second = torch.rand(2, count, 2, dtype=torch.float64)
    corners = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)
    corners = 1 + corners * torch.tensor([width - 3, height - 3] * 2)
    return torch.cat([torch.randint(images, (count, 1)).double(), corners], dim=1)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("sampling", "scale"), [(2, 1.0), (1, 0.5), (3, 0.25)])
def test_regions_are_averaged_as_by_torchvision(sampling, scale, aligned):
    maps = torch.randn(3, 5, 20, 28, dtype=torch.float64, requires_grad=True)
    rois = regions(17, 3, 20, 28)
    rois[:, 1:] /= scale
    rois[:, 3:] += 4 / scale * torch.arange(17)[:, None].eq(0)  # one reaches beyond the map, by less than a pixel of it
    rois[:, 3:] = torch.minimum(rois[:, 3:], torch.tensor([28.0, 20.0]) / scale)
    ours = operators.roi_align(maps, rois, (4, 3), scale, sampling, aligned)
    theirs = published(maps, rois, scale, 4, 3, sampling, aligned)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    found, expected = (torch.autograd.grad((out * weight).sum(), maps)[0] for out in (ours, theirs))
    torch.testing.assert_close(found, expected)


def test_regions_of_a_list_and_none_at_all():
    maps = torch.randn(2, 3, 8, 8)
    rois = regions(5, 2, 8, 8).float()
    by_image = [rois[rois[:, 0] == image, 1:] for image in (0, 1)]
    ordered = torch.cat([rois[rois[:, 0] == image] for image in (0, 1)])
    assert torch.equal(operators.roi_align(maps, by_image, 2, 1.0, 2), operators.roi_align(maps, ordered, 2, 1.0, 2))
    assert operators.roi_align(maps, rois[:0], 7).shape == (0, 3, 7, 7)


def test_a_region_chooses_its_number_of_samples():
    """A box of 0 and 1 in bins of 3 x 3 pixels: one sample a bin would give 0 or 1."""
    maps = torch.zeros(1, 1, 12, 12)
    maps[..., ::2] = 1
    found = operators.roi_align(maps, torch.tensor([[0.0, 0, 0, 12, 12]]), 4)
    assert ((found > 0.25) & (found < 0.75)).all()


def test_kept_boxes_are_apart_and_every_other_one_overlaps_a_better_one():
    corners = 50 * torch.rand(200, 2)
    found = torch.cat([corners, corners + 5 + 20 * torch.rand(200, 2)], dim=1)
    scores = torch.rand(200)
    kept = operators.nms(found, scores, 0.4)
    overlaps = box_iou(found, found)
    assert scores[kept].diff().le(0).all()
    assert (overlaps[kept][:, kept].triu(1) <= 0.4).all()
    dropped = torch.tensor(sorted(set(range(200)) - set(kept.tolist())))
    better = scores[kept] >= scores[dropped, None]
    assert ((overlaps[dropped][:, kept] > 0.4) & better).any(dim=1).all()
    assert operators.nms(found[:0], scores[:0], 0.5).shape == (0,)


@pytest.mark.parametrize("loaded", [False, True])
def test_torchvision_keeps_its_own_operators_where_they_loaded(monkeypatch, loaded):
    from torchvision.models.detection import roi_heads

    monkeypatch.setattr(torchvision.extension, "_has_ops", lambda: loaded)
    for module, name in ((boxes, "nms"), (poolers, "roi_align"), (roi_heads, "roi_align")):
        monkeypatch.setattr(module, name, f"torchvision's {name}")
    operators.replace_missing()
    replaced = [boxes.nms, poolers.roi_align, roi_heads.roi_align]
    assert replaced == (
        ["torchvision's nms", *["torchvision's roi_align"] * 2]
        if loaded
        else [operators.nms, *[operators.roi_align] * 2]
    )

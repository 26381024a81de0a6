"""Non-maximum suppression and RoIAlign in plain torch, for a torchvision whose own operators cannot load.

Such is the one for CUDA beside a torch for CPUs, see bimkern/torchvision_compat.py. Both are slower than its own.

Shapes: K boxes or regions, B images, C channels, H W rows and columns of a map.
"""

import math

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.models.detection import roi_heads
from torchvision.ops import box_iou, boxes, poolers
from torchvision.ops._utils import convert_boxes_to_roi_format

_MOST_SAMPLES = 4  # a side of a bin, where their number is to follow from the size of a region


def replace_missing() -> None:
    """Let torchvision's detection models call the functions below, where its own operators did not load."""
    if not torchvision.extension._has_ops():
        boxes.nms = nms
        poolers.roi_align = roi_heads.roi_align = roi_align


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the boxes that no kept one of a higher score overlaps by more than a threshold, by falling score.

    Same as: torchvision.ops.nms.
    """
    order = scores.argsort(descending=True, stable=True)
    overlaps = (box_iou(boxes[order], boxes[order]) > iou_threshold).triu(diagonal=1).cpu()
    alive = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if alive[i]:
            alive &= ~overlaps[i]
    return order[alive.to(order.device)]


def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Average bilinear samples of a map [B, C, H, W] in the bins of regions [K, 5]: [K, C, rows, columns].

    Samples more than a pixel outside the map count as its border, not as 0. Without a sampling ratio, all regions have
    as many samples as the largest one takes, at most 4 x 4 a bin.

    Same as: torchvision.ops.roi_align, but for that.
    """
    regions = convert_boxes_to_roi_format(boxes) if isinstance(boxes, list) else boxes
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    corners = regions[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    extents = corners[:, 2:] - corners[:, :2]
    if not aligned:
        extents = extents.clamp(min=1.0)
    if sampling_ratio > 0 or not len(regions):
        samples = max(sampling_ratio, 1)
    else:
        samples = min(_MOST_SAMPLES, math.ceil(extents.max().item() / min(rows, columns)))

    def positions(axis: int, bins: int) -> Tensor:
        """Return where samples lie along an axis, [K, bins * samples], from -1 to 1 over the map."""
        steps = (torch.arange(bins * samples, device=corners.device, dtype=corners.dtype) + 0.5) / (bins * samples)
        pixels = corners[:, axis, None] + steps * extents[:, axis, None]
        return (2 * pixels + 1) / input.shape[3 - axis] - 1

    x, y = positions(0, columns), positions(1, rows)
    found = input.new_zeros(len(regions), input.shape[1], rows, columns)
    for image in regions[:, 0].unique().int().tolist():
        here = (regions[:, 0] == image).nonzero()[:, 0]
        grid = torch.stack(torch.broadcast_tensors(x[here, None, :], y[here, :, None]), dim=-1)  # [K, rows, columns, 2]
        sampled = F.grid_sample(
            input[image, None], grid.flatten(0, 1)[None].to(input.dtype), padding_mode="border", align_corners=False
        )
        bins = F.avg_pool2d(sampled, samples)[0].unflatten(1, (len(here), rows))  # [C, K, rows, columns]
        found = found.index_copy(0, here, bins.transpose(0, 1))
    return found

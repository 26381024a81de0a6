"""UperNet: a pyramid pooling module on the coarsest map, a top-down pathway, and one prediction from all maps.

Shapes: B images, H W pixels, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import Conv2dNormActivation

_BINS = (1, 2, 3, 6)


class UperNet(nn.Module):
    """Classify the pixels of images by the maps of a pyramid.

    Source: Xiao et al. 2018 (UperNet), section 3.1, with the auxiliary classifier of Zhao et al. 2017 (PSPNet).
    """

    def __init__(self, pyramid: nn.Module, num_classes: int, width: int = 512) -> None:
        """Take a pyramid with maps of `pyramid.channels`, the finest first."""
        super().__init__()
        self.pyramid = pyramid
        *fine, coarse = channels = list(pyramid.channels)
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), Conv2dNormActivation(coarse, width, 1)) for bins in _BINS
        )
        self.bottleneck = Conv2dNormActivation(coarse + len(_BINS) * width, width)
        self.lateral = nn.ModuleList(Conv2dNormActivation(channel, width, 1) for channel in fine)
        self.smooth = nn.ModuleList(Conv2dNormActivation(width, width) for _ in fine)
        self.classify = nn.Sequential(
            Conv2dNormActivation(len(channels) * width, width), nn.Dropout(0.1), nn.Conv2d(width, num_classes, 1)
        )
        self.auxiliary = FCNHead(channels[2], num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return two predictions [B, K, H, W] for images [B, 3, H, W]: the main and the auxiliary one."""
        maps = self.pyramid(images)
        *fine, coarse = maps
        around = [resized(pool(coarse), coarse.shape[2:]) for pool in self.pooled]
        top = self.bottleneck(torch.cat([coarse, *around], dim=1))
        found = [top]
        for lateral, finer in zip(reversed(self.lateral), reversed(fine), strict=True):
            found.append(lateral(finer) + resized(found[-1], finer.shape[2:]))
        size = found[-1].shape[2:]
        smooth = [conv(level) for conv, level in zip(self.smooth, reversed(found[1:]), strict=True)]
        merged = torch.cat([resized(level, size) for level in (*smooth, top)], dim=1)
        main, auxiliary = self.classify(merged), self.auxiliary(maps[2])
        return resized(main, images.shape[2:]), resized(auxiliary, images.shape[2:])


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)

"""torchvision's Mask R-CNN on a pyramid of ours."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from bimkern.models.pyramid import STRIDES, ChannelNorm, SwinPyramid, ViTPyramid

_LEVELS = ["0", "1", "2", "3"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the detector is, and what it looks for; by default as for COCO."""

    width: int = 256
    anchor: int = 8  # times the stride of a map: the side of the boxes that are looked for in it
    proposals: int = 1000  # of an image, behind non-maximum suppression
    regions: int = 512  # of an image, that the heads are trained on


class Maps(nn.Module):
    """Maps of one width, and a fifth one of half the size of the last."""

    def __init__(self, pyramid: ViTPyramid | SwinPyramid, width: int) -> None:
        """A ViT's maps pass two convolutions each, as in ViTDet; a Swin's pass a feature pyramid network."""
        super().__init__()
        self.pyramid, self.out_channels = pyramid, width
        self.coarsest = LastLevelMaxPool()
        if isinstance(pyramid, SwinPyramid):
            self.merge: nn.Module = FeaturePyramidNetwork(list(pyramid.channels), width)
        else:
            self.merge = _Separate(pyramid.channels, width)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.merge(OrderedDict(zip(_LEVELS, self.pyramid(images), strict=True)))
        return OrderedDict(zip([*_LEVELS, "pool"], self.coarsest(list(maps.values()), [], list(maps))[0], strict=True))


class _Separate(nn.Module):
    """The convolutions behind a simple feature pyramid; nothing passes between its maps.

    Source: Li et al. 2022 (ViTDet), section 3.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        conv = partial(Conv2dNormActivation, norm_layer=ChannelNorm, activation_layer=None, bias=False)
        self.convs = nn.ModuleList(nn.Sequential(conv(channel, width, 1), conv(width, width)) for channel in channels)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: conv(maps[name]) for name, conv in zip(maps, self.convs, strict=True)}


def build_mask_rcnn(
    pyramid: ViTPyramid | SwinPyramid,
    num_classes: int,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    sizes: Sizes,
) -> MaskRCNN:
    """Build a detector of classes 1, 2, ... with ViTDet's heads; images are scaled and padded to a square."""
    width = sizes.width
    anchors = tuple((sizes.anchor * stride,) for stride in (*STRIDES, 2 * STRIDES[-1]))
    pool = partial(MultiScaleRoIAlign, _LEVELS, sampling_ratio=2, canonical_scale=224 * sizes.anchor // 8)
    return MaskRCNN(
        Maps(pyramid, width),
        min_size=side,
        max_size=side,
        size_divisible=side,
        image_mean=mean,
        image_std=std,
        rpn_anchor_generator=AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(anchors)),
        rpn_head=RPNHead(width, 3, conv_depth=2),
        rpn_pre_nms_top_n_train=2 * sizes.proposals,
        rpn_pre_nms_top_n_test=sizes.proposals,
        rpn_post_nms_top_n_train=sizes.proposals,
        rpn_post_nms_top_n_test=sizes.proposals,
        box_batch_size_per_image=sizes.regions,
        box_roi_pool=pool(output_size=7),
        mask_roi_pool=pool(output_size=14),
        box_head=FastRCNNConvFCHead((width, 7, 7), [width] * 4, [4 * width], norm_layer=ChannelNorm),
        box_predictor=FastRCNNPredictor(4 * width, num_classes + 1),  # 0 is background
        mask_head=MaskRCNNHeads(width, [width] * 4, 1, norm_layer=ChannelNorm),
        mask_predictor=MaskRCNNPredictor(width, width, num_classes + 1),
    )

"""Backbones that are small enough for tests: one for every way in which timm builds and reads them, and a CMT."""

from functools import cache

import torch

from bimkern.mim.flow import EndToEnd, MicroBatch
from bimkern.mim.masking.units import BlockPixels
from bimkern.mim.model import MIM, Method
from bimkern.mim.targets import HogTarget
from bimkern.models.cmt import CMTConfig
from bimkern.models.heads import LinearConfig
from bimkern.models.timm_backbone import TimmBackboneConfig

_OF_TIMM = {
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}),
    "convnextv2": ("convnextv2_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    "pvt": ("pvt_v2_b0", {"depths": (1, 1, 2, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)}),
    "twins": ("twins_svt_small", {"depths": (1, 1, 2, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1, 2, 1), "embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 2},
    ),
    "resnet": ("resnet10t", {"channels": (8, 16, 24, 32)}),
    "vit": ("vit_tiny_patch16_224", {"embed_dim": 16, "depth": 3, "num_heads": 2}),
    "efficientnet": ("tinynet_e", {}),
}
_CMT = CMTConfig(widths=(8, 16, 32), depths=(1, 2, 1), num_heads=(1, 2, 4), reductions=(4, 2, 1), stem_width=4)
OF_TIMM = tuple(_OF_TIMM)
ALL = (*OF_TIMM, "cmt")
SIZE = 64


@cache
def backbone(family):
    """The config of a family, for images of 64 pixels."""
    if family == "cmt":
        return _CMT.resized(SIZE)
    name, model_args = _OF_TIMM[family]
    return TimmBackboneConfig(name=name, image_size=SIZE, model_args=model_args)


def method(config, taps=None, **pieces):
    """Predict histograms of cells of eight pixels, masked in units of cells of the last level."""
    taps = taps or (config.depth - 1,)
    last, patches = config.level(config.depth).patch, [config.level(tap + 1).patch for tap in taps]
    given = {
        "encoder": config,
        "taps": taps,
        "masker": BlockPixels(ratio=0.5, mask_unit=last // config.level(0).patch),
        "heads": (LinearConfig(),),
        "targets": tuple(HogTarget(cells=max(1, patch // 8)) for patch in patches),
        "flow": EndToEnd(),
    }
    return Method(**given | pieces)


def sample(model, count=3, size=SIZE):
    images = torch.randint(0, 256, (count, model.method.encoder.channels, size, size), dtype=torch.uint8)
    return MicroBatch(images, model.views(images, torch.arange(count), 1))


def network(method):
    """Build a network whose every value is random, norms and biases too, so that no two tensors can be mistaken."""
    model = MIM(method)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class KeepGradients:
    """An update that does nothing."""

    def scale(self, loss):
        return loss

    def apply(self):
        pass

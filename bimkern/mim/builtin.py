"""Our own pieces: importing this module registers all of them."""

from bimkern.mim import flow, schedule, targets
from bimkern.mim.masking import blockwise, random, units
from bimkern.mim.reconstruction import renderers
from bimkern.models import cmt, heads, swin, timm_backbone, vit

__all__ = [
    "blockwise",
    "cmt",
    "flow",
    "heads",
    "random",
    "renderers",
    "schedule",
    "swin",
    "targets",
    "timm_backbone",
    "units",
    "vit",
]

"""Ops for what masked image modeling computes beyond a plain network, each usable on its own."""

from bimkern.ops._backend import BackendError, backends
from bimkern.ops.embed_visible import embed_visible
from bimkern.ops.gather_tokens import gather_tokens
from bimkern.ops.group_attention import group_attention
from bimkern.ops.group_windows import WindowGroups, group_windows
from bimkern.ops.hog import hog
from bimkern.ops.keep_to_mask import keep_to_mask
from bimkern.ops.masked_loss import masked_loss
from bimkern.ops.masked_pixel_loss import masked_pixel_loss
from bimkern.ops.match import MatchLayers, match_loss, match_predict
from bimkern.ops.pixel_targets import pixel_targets
from bimkern.ops.random_keep import random_keep
from bimkern.ops.restore_tokens import restore_tokens
from bimkern.ops.scale_mask import scale_mask

__all__ = [
    "BackendError",
    "MatchLayers",
    "WindowGroups",
    "backends",
    "embed_visible",
    "gather_tokens",
    "group_attention",
    "group_windows",
    "hog",
    "keep_to_mask",
    "masked_loss",
    "masked_pixel_loss",
    "match_loss",
    "match_predict",
    "pixel_targets",
    "random_keep",
    "restore_tokens",
    "scale_mask",
]

"""Make masked image modeling code of other programs faster, in one line: `bimkern.dropin.patch(model)`."""

from bimkern.dropin.functions import (
    HOGLayer,
    PatchDropout,
    apply_masks,
    patchify_loss,
    random_masking,
    unshuffle,
)
from bimkern.dropin.patch import DropinError, Patched, patch

__all__ = [
    "DropinError",
    "HOGLayer",
    "PatchDropout",
    "Patched",
    "apply_masks",
    "patch",
    "patchify_loss",
    "random_masking",
    "unshuffle",
]

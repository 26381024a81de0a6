"""The programs that exported weights are made for, where they are installed."""

import numpy as np
import pytest
import torch
from PIL import Image

import bimkern.torchvision_compat  # noqa: F401

# What a torchvision without its compiled part stumbles over when it is imported: it describes an operator that is not
# there.
TORCHVISION_FOR_CUDA = """
import torch
@torch.library.register_fake("torchvision::nms")
def _(dets, scores, iou_threshold): ...
"""


def import_or_skip(name):
    """Import timm or transformers, or skip the test with the reason."""
    return pytest.importorskip(name, exc_type=ImportError)  # the reason is then what the import said


def own_features(model, photo):
    """Compute of a photograph [1, D] what timm does with the exported encoder: the mean of the patches, normalized."""
    size = model.method.encoder.image_size.height
    scale = int(size / (224 / 256)) / min(photo.size)
    resized = photo.resize([int(scale * side) for side in photo.size], Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in resized.size)
    pixels = np.array(resized.crop((left, top, left + size, top + size)))
    tokens = model.encoder.embed(model.colors.normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
    for layer in model.encoder.blocks:
        tokens = layer(tokens)
    return model.heads[-1].in_norm(tokens)[:, 1:].mean(1)

"""The programs that exported weights are made for, where they are installed."""

import pytest

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

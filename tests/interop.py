"""The programs that exported weights are made for, where they are installed; also beside a CPU torch."""

import pytest
import torch

_fragments = []  # a schema lives as long as its library object


def import_or_skip(name):
    """Import timm or transformers, or skip the test with the reason."""
    _make_torchvision_importable()
    return pytest.importorskip(name, exc_type=ImportError)  # the reason is then what the import said


def _make_torchvision_importable():
    """Declare the operators that a torchvision built for CUDA misses beside a CPU torch; nothing here calls them."""
    if torch.version.cuda is not None or _fragments:
        return
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        _fragments.append(torch.library.Library("torchvision", "FRAGMENT"))
        for op in ("nms", "qnms"):
            _fragments[0].define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

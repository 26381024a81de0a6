"""Import this before timm or transformers beside a CPU torch: a torchvision that was built for CUDA then imports too.

Such a torchvision, PyPI's for Linux, cannot load its compiled part there, so that `import torchvision` fails, `import
timm` with it, and most of transformers. Here the two operators that it looks up get a schema and no kernel. Transforms,
models and all of timm then work; calling one of the two raises. Nothing changes where torch has CUDA, or where
torchvision imports anyway or is not installed.
"""

import torch

from bimkern import optional

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_operators() -> torch.library.Library | None:
    if torch.version.cuda is not None:
        return None
    try:
        optional.load("torchvision")
    except optional.Unusable as error:
        if optional.TORCHVISION_WITHOUT_OPERATORS in str(error):
            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                library.define(f"{name}{_SCHEMA}")
            return library
    return None


_OPERATORS = _declare_operators()  # the schemas live as long as this

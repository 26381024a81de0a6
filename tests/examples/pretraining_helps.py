"""`python tests/examples/pretraining_helps.py [FOLDER]`: a pre-trained encoder segments shapes better than a new one.

A small ViT learns the training images of the data set as MAE does; then the example of segmentation is run from its
weights and from scratch, with equal steps and seeds. Part of `make stress`: it takes some minutes on two cores.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from bimkern.api import pretrain
from bimkern.models.vit import ViTConfig
from bimkern.recipes import RECIPES
from examples.segmentation.__main__ import SegmentationOptions, segmentation
from examples.transfer.shapes import SIDE, draw_masks

ENCODER = ViTConfig(image_size=SIDE, patch=8, width=96, depth=4, num_heads=4)
PRETRAINING_STEPS = 500
SEEDS = (0, 1, 2)


def mean_iou(run: Path, out: Path, seed: int, *, scratch: bool) -> float:
    out.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    segmentation(SegmentationOptions(backbone=run, data="shapes", out=out, scratch=scratch, seed=seed, device="cpu"))
    return json.loads((out / "metrics.json").read_text())["mean_iou"]


def main(folder: Path) -> None:
    draw_masks(folder / "shapes")
    method = replace(RECIPES["mae_vit_test"].config.method, encoder=ENCODER)
    config = replace(RECIPES["mae_vit_test"].config, method=method)
    images = str(folder / "shapes/images/train")
    pretrain(config, data=images, out=str(folder / "run"), steps=PRETRAINING_STEPS, batch_size=64, device="cpu")
    for seed in SEEDS:
        trained, new = (mean_iou(folder / "run", folder / "out", seed, scratch=scratch) for scratch in (False, True))
        print(f"seed {seed}: mean IoU {trained:.1%} from the pre-trained encoder, {new:.1%} from scratch", flush=True)
        assert trained > new


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))

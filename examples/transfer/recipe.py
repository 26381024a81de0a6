"""LocalMIM on a small ViT, to be pre-trained on drawn shapes: a recipe in a file of its own.

python -m bimkern.pretrain examples/transfer/recipe.py:shapes --data FOLDER --out runs/shapes
"""

from dataclasses import replace

from bimkern.data.augment import RandomResizedCrop
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.schedule import Cosine
from bimkern.mim.stages import equal_stages
from bimkern.models.heads import DecoderConfig
from bimkern.models.vit import ViTConfig
from bimkern.recipes import RECIPES
from bimkern.train.config.run import Config, RunConfig
from examples.transfer.shapes import SIDE


def shapes() -> Config:
    """Histograms of gradients at four scales, read after each of four layers; the numbers are ours, for two cores."""
    published = RECIPES["localmim_vit_base"].config
    encoder = ViTConfig(image_size=SIDE, patch=8, width=96, depth=4, num_heads=4)
    heads = tuple(
        replace(head, width=64, num_heads=4) for head in published.method.heads if isinstance(head, DecoderConfig)
    )
    method = replace(
        published.method, encoder=encoder, taps=equal_stages(4), masker=RandomDrop(ratios=(0.6,)), heads=heads
    )
    return replace(
        published,
        recipe="shapes",
        method=method,
        augment=RandomResizedCrop(scale=(0.5, 1.0)),
        schedule=Cosine(warmup=0.1),
        run=RunConfig(steps=1500, batch_size=32, base_lr=8e-3, precision="fp32"),  # a peak of 1e-3
    )

"""The demo: a small BIM that learns from photographs inside the installed wheels, in under two minutes on two cores."""

from dataclasses import replace

from bimkern.data.augment import RandomResizedCrop
from bimkern.image_size import ImageSize
from bimkern.mim.schedule import Cosine
from bimkern.mim.targets import PixelTarget
from bimkern.models.heads import DecoderConfig
from bimkern.models.vit import ViTConfig
from bimkern.recipes.bim import GROWING_MASK, bim
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.run import Config, RunConfig


def demo() -> Config:
    """Four stages of one layer each with a growing mask; the numbers are ours, chosen for two CPU cores."""
    encoder = ViTConfig(image_size=ImageSize.square(64), patch=8, width=128, depth=4, num_heads=4)
    base = bim("demo", encoder, GROWING_MASK)
    return replace(
        base,
        method=replace(
            base.method,
            heads=(DecoderConfig(width=96, depth=1, num_heads=4),),
            targets=(PixelTarget(normalize=False),),  # raw pixels: the pictures need no statistics of the truth
        ),
        augment=RandomResizedCrop(scale=(0.1, 1.0)),
        schedule=Cosine(warmup=0.1),
        # A peak of 1.5e-3; at 4e-3 one vector grows in all tokens, and layers 2 to 4 attend alike for every query.
        run=RunConfig(steps=500, batch_size=32, base_lr=1.2e-2, precision="fp32"),
    )


DEMO_RECIPES = (Recipe(summary="small BIM with a growing mask, for a first look", config=demo()),)

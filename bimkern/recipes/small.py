"""Recipes small enough for tests and for trying options: the published ones on a ViT that trains in seconds."""

from dataclasses import replace

from bimkern.models.heads import DecoderConfig
from bimkern.models.vit import ViTConfig
from bimkern.recipes.bim import FIXED_MASK, GROWING_MASK, bim
from bimkern.recipes.mae import mae
from bimkern.recipes.recipe import Recipe
from bimkern.train.config import Config, RunConfig

_ENCODER = ViTConfig(image_size=32, patch=8, width=32, depth=4, num_heads=2)
_HEAD = DecoderConfig(width=32, depth=1, num_heads=2)
_RUN = RunConfig(steps=20, batch_size=8, base_lr=1.6e-2, precision="fp32")


def _small(config: Config) -> Config:
    return replace(config, method=replace(config.method, heads=(_HEAD,)), run=_RUN)


SMALL_RECIPES = (
    Recipe(summary="MAE on a tiny ViT, for tests", config=_small(mae("mae_vit_test", _ENCODER))),
    Recipe(summary="BIM on a tiny ViT, for tests", config=_small(bim("bim_vit_test", _ENCODER, FIXED_MASK))),
    Recipe(
        summary="BIM with a growing mask on a tiny ViT, for tests",
        config=_small(bim("bim_vit_test_growing", _ENCODER, GROWING_MASK)),
    ),
)

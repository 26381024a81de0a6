"""MaskFeat: Wei et al. 2022, "Masked Feature Prediction for Self-Supervised Visual Pre-Training", arXiv 2112.09133.

The encoder is the ViT of every other recipe: fixed positions in place of the published learned ones, so that methods
are compared and not encoders.
"""

from dataclasses import replace

from bimkern.data.augment import RandomResizedCrop
from bimkern.mim.flow import EndToEnd
from bimkern.mim.masking.blockwise import Blockwise
from bimkern.mim.model import Method
from bimkern.mim.schedule import Cosine
from bimkern.mim.targets import HogTarget
from bimkern.models.heads import LinearConfig
from bimkern.models.vit import VIT_BASE, ViTConfig
from bimkern.recipes.bim import local
from bimkern.recipes.mae import mae
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.config.run import Config

_EPOCHS = 300  # the published config; 1600 in table 7


def maskfeat(name: str, encoder: ViTConfig) -> Config:
    """Predict HOG from mask tokens that pass the whole encoder, by one linear layer."""
    base = mae(name, encoder)
    return replace(
        base,
        method=Method(
            encoder=encoder,
            taps=(encoder.depth - 1,),
            masker=Blockwise(ratio=0.4),  # section 5 and appendix
            heads=(LinearConfig(),),  # section 3.1
            targets=(HogTarget(bins=9, cells=2),),  # section 3.2: 9 bins, cells of 8 pixels
            flow=EndToEnd(),
        ),
        augment=RandomResizedCrop(scale=(0.5, 1.0)),  # appendix
        optim=AdamWConfig(betas=(0.9, 0.999), weight_decay=0.05, clip=0.02),  # appendix
        schedule=Cosine(warmup_epochs=30, final_lr=1e-6),  # appendix
        run=replace(base.run, epochs=_EPOCHS, batch_size=2048, base_lr=2e-4, slices=1),  # appendix
    )


_BASE = maskfeat("maskfeat_vit_base", VIT_BASE)

MASKFEAT_RECIPES = (
    Recipe(summary="MaskFeat, ViT-B/16, HOG", config=_BASE),
    Recipe(summary="BIM over MaskFeat, ViT-B/16, four local stages", config=local(_BASE, "bim_maskfeat_vit_base")),
)

"""Combinations that no paper has: pieces of one method in another; every number is that of its own method's recipe."""

from dataclasses import replace

from bimkern.mim.flow import Local
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.targets import HogTarget
from bimkern.models.swin import SWIN_BASE, SwinConfig
from bimkern.models.vit import VIT_BASE, ViTConfig
from bimkern.recipes.bim import GROWING_MASK, bim, local
from bimkern.recipes.fastmim import HOG, IMAGE_SIZE, VIT_BASE_128, progressive
from bimkern.recipes.greenmim import greenmim
from bimkern.recipes.localmim import isolated, localmim, localmim_swin
from bimkern.recipes.recipe import Recipe
from bimkern.recipes.vitfreeze import vitfreeze
from bimkern.train.config.run import Config


def bim_hog(name: str, encoder: ViTConfig, target: HogTarget = HOG) -> Config:
    """BIM whose stages predict FastMIM's histograms in place of pixels, at FastMIM's 128 pixels."""
    config = bim(name, encoder, GROWING_MASK)
    return replace(config, method=replace(config.method, targets=(target,)))


def bim_swin(name: str, encoder: SwinConfig) -> Config:
    """BIM over GreenMIM: the stages of a sparse Swin learn alone, each with a head that predicts its own patches."""
    config = greenmim(name, encoder, base_lr=1.5e-4)
    return replace(config, method=replace(config.method, taps=encoder.stage_ends, flow=Local()))


def growing(config: Config, name: str) -> Config:
    """Mask more patches from every stage, as BIM does."""
    assert isinstance(config.method.flow, Local)
    method = replace(config.method, masker=RandomDrop(ratios=GROWING_MASK))
    return replace(config, recipe=name, method=method)


_LOCALMIM = localmim("localmim_vit_base", VIT_BASE, epochs=100, batch_size=2048)

COMBINED_RECIPES = (
    Recipe(
        summary="BIM with HOG targets at 128 pixels, ViT-B/16, growing mask",
        config=bim_hog("bim_hog_vit_base", replace(VIT_BASE, image_size=IMAGE_SIZE)),
    ),
    Recipe(
        summary="BIM over FastMIM, ViT-B/16 at 128 pixels, four local stages",
        config=local(VIT_BASE_128, "bim_fastmim_vit_base"),
    ),
    Recipe(
        summary="BIM over FastMIM-P, ViT-B/16, four local stages, images growing from 128 to 192 pixels",
        config=progressive(local(VIT_BASE_128, "bim_fastmim_vit_base"), "bim_fastmim_p_vit_base"),
    ),
    Recipe(
        summary="LocalMIM, ViT-B/16, isolated gradients, growing mask",
        config=growing(isolated(_LOCALMIM), "localmim_vit_base_isolated_growing"),
    ),
    Recipe(
        summary="ViTFreeze inside isolated stages, ViT-B/16",
        config=vitfreeze("vitfreeze_vit_base_isolated", isolated(_LOCALMIM)),
    ),
    Recipe(
        summary="BIM over GreenMIM, sparse Swin-B, each stage learns alone",
        config=bim_swin("bim_swin_base", SWIN_BASE),
    ),
    Recipe(
        summary="ViTFreeze on LocalMIM's sparse Swin-B",
        config=vitfreeze(
            "vitfreeze_swin_base", localmim_swin("localmim_swin_base", SWIN_BASE, epochs=100, batch_size=2048)
        ),
    ),
)

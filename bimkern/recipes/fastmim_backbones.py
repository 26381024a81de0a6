"""FastMIM on other backbones than ViT: those of its tables, and any of timm by its name."""

from collections.abc import Callable, Mapping
from functools import partial

from bimkern.models.cmt import CMT_SMALL
from bimkern.models.heads import DecoderConfig
from bimkern.models.timm_backbone import TimmBackboneConfig
from bimkern.recipes.fastmim import IMAGE_SIZE, fastmim, progressive
from bimkern.recipes.recipe import DeferredRecipe, Recipe
from bimkern.train.config.run import Config

# Appendix A has decoders of ViT and Swin alone: that of Swin-B.
HIERARCHICAL_DECODER = DecoderConfig(width=256, depth=4, num_heads=8, positions=False)


def fastmim_of(backbone: str) -> Config:
    """FastMIM on a backbone of timm; mask units are cells of its last level.

    Raises:
        ValueError: timm is missing or has no such backbone, or FastMIM cannot be trained on it.
    """
    encoder = TimmBackboneConfig(name=backbone, image_size=IMAGE_SIZE)
    return fastmim(f"fastmim_{backbone}", encoder, HIERARCHICAL_DECODER)


def fastmim_p_of(backbone: str) -> Config:
    """FastMIM-P on a backbone of timm that takes images of any size.

    Raises:
        ValueError: as fastmim_of, or its images cannot grow.
    """
    return progressive(fastmim_of(backbone), f"fastmim_p_{backbone}")


_TABLES = {  # the tables of 800 epochs with other backbones than ViT and Swin
    "pvt_v2_b2": "PVTv2-B2",
    "pvt_v2_b5": "PVTv2-B5",
    "convnext_tiny": "ConvNeXt-T",
    "convnext_base": "ConvNeXt-B",
    "convnextv2_base": "ConvNeXtV2-B",
    "twins_svt_large": "Twins-L",
}

FASTMIM_BACKBONE_RECIPES: tuple[Recipe[Config] | DeferredRecipe, ...] = (
    Recipe(
        summary="FastMIM, CMT-S at 128 pixels, HOG",
        config=fastmim("fastmim_cmt_small", CMT_SMALL, HIERARCHICAL_DECODER),
    ),
    *(
        DeferredRecipe(
            name=f"fastmim_{backbone}",
            summary=f"FastMIM, {name} at 128 pixels, HOG (needs timm)",
            build=partial(fastmim_of, backbone),
        )
        for backbone, name in _TABLES.items()
    ),
)

WITH_BACKBONE: Mapping[str, Callable[[str], Config]] = {"fastmim": fastmim_of, "fastmim_p": fastmim_p_of}

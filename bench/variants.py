"""Recipes for comparisons alone, which no paper has: `python -m bench` knows them beside those of the package."""

from dataclasses import replace

from bimkern.mim.masking.units import RandomUnits, SharedUnits
from bimkern.models.heads import DecoderConfig
from bimkern.models.swin import SWIN_BASE
from bimkern.recipes import RECIPES, DeferredRecipe, Recipe
from bimkern.recipes.simmim import simmim
from bimkern.train.config.run import Config


def mask_per_image(config: Config, name: str) -> Config:
    """Draw a mask for each image where a config draws one for a batch."""
    masker = config.method.masker
    assert isinstance(masker, SharedUnits)
    own = RandomUnits(ratio=masker.ratio, mask_unit=masker.mask_unit)
    return replace(config, recipe=name, method=replace(config.method, masker=own))


def shallow(config: Config, name: str, depth: int) -> Config:
    """Give every head of a config fewer layers, which all tokens still pass."""
    (head,) = config.method.heads
    assert isinstance(head, DecoderConfig)
    return replace(config, recipe=name, method=replace(config.method, heads=(replace(head, depth=depth),)))


VARIANTS = (
    *(
        Recipe(
            summary=f"BIM, {size}, decoders of two layers over all tokens",
            config=shallow(RECIPES[f"bim_vit_{name}"].config, f"bim_vit_{name}_depth2", depth=2),
        )
        for name, size in (("base", "ViT-B"), ("large", "ViT-L"), ("test", "a tiny ViT"))
    ),
    Recipe(
        summary="SimMIM, Swin-B at the 224 pixels of the sparse methods",
        config=simmim("simmim_swin_base_224", SWIN_BASE),
    ),
    *(
        Recipe(
            summary=f"{name} with a mask for each image",
            config=mask_per_image(RECIPES[name].config, f"{name}_per_image"),
        )
        for name in ("greenmim_swin_base", "greenmim_swin_tiny_test")
    ),
)

KNOWN: dict[str, Recipe[Config] | DeferredRecipe] = RECIPES | {recipe.name: recipe for recipe in VARIANTS}

"""Recipes: each method with the numbers of its paper, as functions that return a complete config."""

from bimkern.recipes.bim import BIM_RECIPES
from bimkern.recipes.combined import COMBINED_RECIPES
from bimkern.recipes.demo import DEMO_RECIPES
from bimkern.recipes.fastmim import FASTMIM_RECIPES
from bimkern.recipes.fastmim_backbones import FASTMIM_BACKBONE_RECIPES, WITH_BACKBONE
from bimkern.recipes.greenmim import GREENMIM_RECIPES
from bimkern.recipes.localmim import LOCALMIM_RECIPES
from bimkern.recipes.mae import MAE_RECIPES
from bimkern.recipes.maskfeat import MASKFEAT_RECIPES
from bimkern.recipes.recipe import DeferredRecipe, Recipe
from bimkern.recipes.simmim import SIMMIM_RECIPES
from bimkern.recipes.small import SMALL_RECIPES
from bimkern.recipes.vitfreeze import VITFREEZE_RECIPES
from bimkern.train.config.run import Config

FAMILIES: dict[str, tuple[Recipe[Config] | DeferredRecipe, ...]] = {  # as --help lists them
    "For a first look": DEMO_RECIPES,
    "BIM: stages that learn independently": BIM_RECIPES,
    "LocalMIM: targets at four scales": LOCALMIM_RECIPES,
    "ViTFreeze: LocalMIM that freezes its first layers first": VITFREEZE_RECIPES,
    "FastMIM: small images, HOG targets": (*FASTMIM_RECIPES, *FASTMIM_BACKBONE_RECIPES),
    "Baselines, and BIM over them": (*MAE_RECIPES, *SIMMIM_RECIPES, *MASKFEAT_RECIPES, *GREENMIM_RECIPES),
    "Combinations that no paper has": COMBINED_RECIPES,
}

RECIPES: dict[str, Recipe[Config] | DeferredRecipe] = {
    recipe.name: recipe for members in (*FAMILIES.values(), SMALL_RECIPES) for recipe in members
}

__all__ = ["FAMILIES", "RECIPES", "SMALL_RECIPES", "WITH_BACKBONE", "DeferredRecipe", "Recipe"]

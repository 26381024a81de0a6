"""Recipes: every method with every number of its paper, as functions that return a complete config."""

from bimkern.recipes.bim import BIM_RECIPES
from bimkern.recipes.combined import COMBINED_RECIPES
from bimkern.recipes.demo import DEMO_RECIPES
from bimkern.recipes.fastmim import FASTMIM_RECIPES
from bimkern.recipes.localmim import LOCALMIM_RECIPES
from bimkern.recipes.mae import MAE_RECIPES
from bimkern.recipes.maskfeat import MASKFEAT_RECIPES
from bimkern.recipes.recipe import Recipe
from bimkern.recipes.simmim import SIMMIM_RECIPES
from bimkern.recipes.small import SMALL_RECIPES
from bimkern.recipes.vitfreeze import VITFREEZE_RECIPES

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *DEMO_RECIPES,
        *BIM_RECIPES,
        *LOCALMIM_RECIPES,
        *FASTMIM_RECIPES,
        *VITFREEZE_RECIPES,
        *MAE_RECIPES,
        *SIMMIM_RECIPES,
        *MASKFEAT_RECIPES,
        *COMBINED_RECIPES,
        *SMALL_RECIPES,
    )
}

__all__ = ["RECIPES", "Recipe"]

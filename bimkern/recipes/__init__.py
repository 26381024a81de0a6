"""Recipes: every method with every number of its paper, as functions that return a complete config."""

from bimkern.recipes.bim import BIM_RECIPES
from bimkern.recipes.demo import DEMO_RECIPES
from bimkern.recipes.mae import MAE_RECIPES
from bimkern.recipes.recipe import Recipe
from bimkern.recipes.small import SMALL_RECIPES

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (*DEMO_RECIPES, *BIM_RECIPES, *MAE_RECIPES, *SMALL_RECIPES)
}

__all__ = ["RECIPES", "Recipe"]

"""ViTFreeze: Topcuoglu & Akbas 2023, LocalMIM whose first layers stop learning first; published program 30e80f9."""

from dataclasses import replace

from bimkern.mim.schedule import Cosine, FreezeOut
from bimkern.models.vit import VIT_BASE
from bimkern.recipes.localmim import localmim
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.run import Config


def vitfreeze(name: str, base: Config) -> Config:
    """Freeze the units of a run layer by layer: each has its own rate, while heads keep that of the run."""
    cosine = base.schedule
    assert isinstance(cosine, Cosine)
    # section 4 and table 1: cubic, 0.8, scaled
    schedule = FreezeOut(warmup=cosine.warmup, t0=0.8, power=3, heads="global", final=cosine.final)
    return replace(base, recipe=name, schedule=schedule)


_BASE = localmim("localmim_vit_base", VIT_BASE, epochs=100, batch_size=2048)  # section 4

VITFREEZE_RECIPES = (
    Recipe(
        summary="ViTFreeze: LocalMIM, ViT-B/16, first layers freeze first",
        config=vitfreeze("vitfreeze_vit_base", _BASE),
    ),
)

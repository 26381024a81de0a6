"""ViTFreeze: Topcuoglu & Akbas 2023, LocalMIM whose first layers stop learning first; published program 30e80f9."""

from dataclasses import replace

from bimkern.mim.schedule import Cosine, FreezeOut, FreezeRate
from bimkern.models.vit import VIT_BASE
from bimkern.recipes.localmim import localmim
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.run import Config


def vitfreeze(name: str, base: Config) -> Config:
    """Freeze the units of a run layer by layer: each has its own rate, while heads keep that of the run."""
    cosine = base.schedule
    assert isinstance(cosine, Cosine)
    schedule = FreezeOut(
        warmup=cosine.warmup,
        warmup_epochs=cosine.warmup_epochs,
        t0=0.8,  # section 4 and table 1, likewise power and rate
        power=3,
        rate="scaled",
        heads="global",
        final=cosine.final,
        final_lr=cosine.final_lr,
    )
    return replace(base, recipe=name, schedule=schedule)


def published(name: str, base: Config, rate: FreezeRate = "scaled") -> Config:
    """Schedule as the published program does: one warm-up for all, and heads at the rate of the layer that they read.

    Its cls token alone is never frozen; here it is part of the embedding.
    """
    frozen = vitfreeze(name, base)
    assert isinstance(frozen.schedule, FreezeOut)
    schedule = replace(frozen.schedule, rate=rate, warmup_to="common", heads="group")
    return replace(frozen, schedule=schedule)


_BASE = localmim("localmim_vit_base", VIT_BASE, epochs=100, batch_size=2048)  # section 4

VITFREEZE_RECIPES = (
    Recipe(
        summary="ViTFreeze: LocalMIM, ViT-B/16, first layers freeze first",
        config=vitfreeze("vitfreeze_vit_base", _BASE),
    ),
    Recipe(
        summary="ViTFreeze, ViT-B/16, learning rates of the published program",
        config=published("vitfreeze_vit_base_published", _BASE),
    ),
    Recipe(
        summary="ViTFreeze, ViT-B/16, unscaled rates: the best of the published logs",
        config=published("vitfreeze_vit_base_unscaled", _BASE, rate="unscaled"),
    ),
)

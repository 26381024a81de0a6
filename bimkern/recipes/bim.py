"""BIM: Luo, Ren & Zhang 2023, "Block-Wise Self-Supervised Learning with Masked Image Modeling", arXiv 2311.17218."""

from dataclasses import replace

from bimkern.mim.flow import Local
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.stages import equal_stages
from bimkern.models.heads import DecoderConfig
from bimkern.models.vit import VIT_BASE, VIT_HUGE, VIT_LARGE, ViTConfig
from bimkern.recipes.mae import mae
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.run import Config

FIXED_MASK = (0.75,)  # section 4.1
GROWING_MASK = (0.65, 0.70, 0.80, 0.85)  # section 3.3 and table 4; mean 0.75

_EPOCHS = 400  # tables 1 and 2; also 800


def local(config: Config, name: str, num_stages: int = 4) -> Config:
    """Cut the encoder of a run with one tap into stages that learn alone, each with a head like the one there was."""
    method = config.method
    method = replace(method, taps=equal_stages(method.encoder.depth, num_stages), flow=Local())  # algorithm 1
    return replace(config, recipe=name, method=method)


def bim(name: str, encoder: ViTConfig, ratios: tuple[float, ...]) -> Config:
    """MAE in four stages that learn alone; every number not set here is MAE's, as in section 4.1."""
    base = local(mae(name, encoder, epochs=_EPOCHS), name)
    return replace(base, method=replace(base.method, masker=RandomDrop(ratios=ratios)))


def light(config: Config, name: str) -> Config:
    """Decode a quarter of the masked patches, in half as many layers.

    The numbers are ours: a step of all four stages then takes fewer operations than MAE's. Attention to visible patches
    alone would take fewer still; that it loses no more was not shown (docs/studies.md).

    Source: Fu et al. 2025 (CrossMAE), section 3, for partial decoding.
    """
    (head,) = config.method.heads
    assert isinstance(head, DecoderConfig)
    head = replace(head, depth=4, share=0.25)
    return replace(config, recipe=name, method=replace(config.method, heads=(head,)))


_ENCODERS = (("base", "B/16", VIT_BASE), ("large", "L/16", VIT_LARGE), ("huge", "H/14", VIT_HUGE))

BIM_RECIPES = (
    *(
        Recipe(summary=f"BIM, ViT-{size}, four local stages{note}", config=bim(f"bim_vit_{name}{suffix}", *numbers))
        for name, size, encoder in _ENCODERS
        for suffix, note, numbers in (
            ("", "", (encoder, FIXED_MASK)),
            ("_growing", ", growing mask", (encoder, GROWING_MASK)),
        )
    ),
    *(
        Recipe(
            summary=f"BIM, ViT-{size}, that decodes a quarter of the masked patches",
            config=light(bim("", encoder, FIXED_MASK), f"bim_vit_{name}_light"),
        )
        for name, size, encoder in _ENCODERS
    ),
)

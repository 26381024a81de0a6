"""FastMIM: Guo et al. 2022, "FastMIM: Expediting Masked Image Modeling Pre-training for Vision", arXiv 2212.06593."""

from collections.abc import Sequence
from dataclasses import replace

from bimkern.data.step_layout import Phase
from bimkern.mim.flow import EndToEnd
from bimkern.mim.masking.units import BlockPixels
from bimkern.mim.model import Method
from bimkern.mim.schedule import Cosine
from bimkern.mim.targets import Distillation, HogTarget
from bimkern.models.encoder import EncoderConfig
from bimkern.models.heads import DecoderConfig
from bimkern.models.vit import VIT_BASE, VIT_LARGE
from bimkern.recipes.mae import mae
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.run import Config

_EPOCHS = 800  # table 1
IMAGE_SIZE = 128  # section 3 and table 2
IMAGE_SIZES = (128, 160, 192)  # FastMIM-P
_PHASE_EPOCHS = (500, 200, 100)  # FastMIM-P, ViT-L
HOG_CELL = 8  # pixels, section 3
HOG = HogTarget(bins=9, cells=2)  # of patches of 16 pixels

SMALL_DECODER = DecoderConfig(width=256, depth=1, num_heads=8, positions=False)  # appendix A, ViT-B
LARGE_DECODER = DecoderConfig(width=512, depth=8, num_heads=16, positions=False)  # appendix A, ViT-L


def fastmim(name: str, encoder: EncoderConfig, decoder: DecoderConfig, *, depth: int | None = None) -> Config:
    """Train at 128 pixels on images whose masked units are painted over, to predict HOG.

    depth cuts the encoder, table 1c: the layers above it are left to fine-tuning.
    """
    base = mae(name, VIT_BASE)
    encoder = encoder.resized(IMAGE_SIZE).cut(depth or encoder.depth)
    first, last = encoder.level(0).patch, encoder.level(encoder.depth).patch
    return replace(
        base,
        method=Method(
            encoder=encoder,
            taps=(encoder.depth - 1,),
            masker=BlockPixels(
                ratio=0.75, mask_unit=last // first
            ),  # section 4.1; table 10b for the last stage's stride
            heads=(decoder,),
            targets=(replace(HOG, cells=max(1, last // HOG_CELL)),),
            flow=EndToEnd(),
        ),
        schedule=Cosine(warmup_epochs=10),  # appendix A
        run=replace(base.run, epochs=_EPOCHS, batch_size=2048, base_lr=1.5e-4, slices=1),  # appendix A
    )


def progressive(config: Config, name: str, sizes: Sequence[int] = IMAGE_SIZES) -> Config:
    """FastMIM-P: let the images of a run grow in three phases; micro-batches shrink as they do.

    The batch stays: the paper does not say that it changes, and the published program, which can change it, has no
    numbers.
    """
    phases = tuple(
        Phase(share=epochs / sum(_PHASE_EPOCHS), image_size=size, micro_factor=(sizes[0] / size) ** 2)
        for epochs, size in zip(_PHASE_EPOCHS, sizes, strict=True)
    )
    method = replace(config.method, encoder=config.method.encoder.resized(sizes[-1]))
    return replace(config, recipe=name, method=method, phases=phases)


VIT_BASE_128 = fastmim("fastmim_vit_base", VIT_BASE, SMALL_DECODER)


def distilled(name: str, config: Config, teacher_layer: int) -> Config:
    """Learn the features of a teacher as well: section 5.6, ViT-L for ViT-B, after fine-tuning it."""
    distillation = Distillation(layers=(teacher_layer,))
    return replace(config, recipe=name, method=replace(config.method, distillation=distillation))


FASTMIM_RECIPES = (
    Recipe(summary="FastMIM, ViT-B/16 at 128 pixels, HOG", config=VIT_BASE_128),
    Recipe(
        summary="FastMIM, ViT-L/16 at 128 pixels, HOG",
        config=fastmim("fastmim_vit_large", VIT_LARGE, LARGE_DECODER),
    ),
    Recipe(
        summary="FastMIM-P, ViT-L/16, images growing from 128 to 192 pixels",
        config=progressive(fastmim("fastmim_vit_large", VIT_LARGE, LARGE_DECODER), "fastmim_p_vit_large"),
    ),
    Recipe(
        summary="FastMIM, first ten layers of ViT-B/16",
        config=fastmim("fastmim_vit_base_depth10", VIT_BASE, SMALL_DECODER, depth=10),
    ),
    Recipe(
        summary="FastMIM, ViT-B/16, distilled from a ViT-L/16 (--teacher)",
        config=distilled("fastmim_vit_base_distilled", VIT_BASE_128, teacher_layer=VIT_LARGE.depth - 1),
    ),
)

"""FastMIM: Guo et al. 2022, "FastMIM: Expediting Masked Image Modeling Pre-training for Vision", arXiv 2212.06593."""

from collections.abc import Sequence
from dataclasses import replace

from bimkern.data.step_layout import Phase
from bimkern.image_size import ImageSize
from bimkern.mim.flow import EndToEnd
from bimkern.mim.masking.units import BlockPixels
from bimkern.mim.model import Method
from bimkern.mim.schedule import Cosine
from bimkern.mim.targets import Distillation, HogTarget
from bimkern.models.encoder import EncoderConfig
from bimkern.models.heads import DecoderConfig
from bimkern.models.swin import SWIN_BASE, SWIN_LARGE
from bimkern.models.vit import VIT_BASE, VIT_LARGE
from bimkern.recipes.mae import trained_as_mae
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.run import Config

IMAGE_SIZE = ImageSize.square(128)  # section 3 and table 2
IMAGE_SIZES = (128, 160, 192)  # FastMIM-P
_VIT_EPOCHS = (500, 200, 100)  # FastMIM-P, ViT-L
_SWIN_EPOCHS = (200, 100, 100)  # FastMIM-P, Swin-L
HOG_CELL = 8  # pixels, section 3
HOG = HogTarget(bins=9, cells=2)  # of patches of 16 pixels

SMALL_DECODER = DecoderConfig(width=256, depth=1, num_heads=8, positions=False)  # appendix A, ViT-B
LARGE_DECODER = DecoderConfig(width=512, depth=8, num_heads=16, positions=False)  # appendix A, ViT-L
_SWIN_BASE_DECODER = replace(SMALL_DECODER, depth=4)  # appendix A
_SWIN_LARGE_DECODER = replace(LARGE_DECODER, depth=4)  # appendix A


def fastmim(
    name: str, encoder: EncoderConfig, decoder: DecoderConfig, *, epochs: int = 800, depth: int | None = None
) -> Config:
    """Train at 128 pixels on images whose masked patches are painted over, to predict HOG.

    epochs: table 1 has 800 for ViT, 400 for Swin. depth cuts the encoder, table 1c: the layers above it are left to
    fine-tuning.
    """
    encoder = encoder.resized(IMAGE_SIZE).cut(depth or encoder.depth)
    first, last = encoder.level(0).patch, encoder.level(encoder.depth).patch
    method = Method(
        encoder=encoder,
        taps=(encoder.depth - 1,),
        masker=BlockPixels(ratio=0.75, mask_unit=last // first),  # section 4.1 and table 10b: patches of the last stage
        heads=(decoder,),
        targets=(replace(HOG, cells=max(1, last // HOG_CELL)),),
        flow=EndToEnd(),
    )
    base = trained_as_mae(name, method)
    return replace(
        base,
        schedule=Cosine(warmup_epochs=10),  # appendix A
        run=replace(base.run, epochs=epochs, batch_size=2048, base_lr=1.5e-4, slices=1),  # appendix A
    )


def progressive(
    config: Config, name: str, sides: Sequence[int] = IMAGE_SIZES, epochs: Sequence[int] = _VIT_EPOCHS
) -> Config:
    """FastMIM-P: let the images of a run grow in three phases; micro-batches shrink as they do.

    The batch stays: the paper does not say that it changes, and the published program, which can change it, has no
    numbers.
    """
    phases = tuple(
        Phase(share=part / sum(epochs), image_size=ImageSize.square(side), micro_factor=(sides[0] / side) ** 2)
        for part, side in zip(epochs, sides, strict=True)
    )
    method = replace(config.method, encoder=config.method.encoder.resized(ImageSize.square(sides[-1])))
    return replace(config, recipe=name, method=method, phases=phases)


VIT_BASE_128 = fastmim("fastmim_vit_base", VIT_BASE, SMALL_DECODER)


def _swin_base(name: str, depth: int | None = None) -> Config:
    """Take the first layers of Swin-B, or all; the others are exported with random values for fine-tuning."""
    encoder = replace(SWIN_BASE, window=4)  # appendix A.3
    if depth is not None:
        encoder = replace(encoder.cut(depth), whole_depths=encoder.depths)
    return fastmim(name, encoder, _SWIN_BASE_DECODER, epochs=400)


def _swin_large(name: str, window: int, window_image_size: ImageSize | None = None) -> Config:
    """Take a cosine for Swin-L too: the paper's step schedule has no numbers."""
    encoder = replace(SWIN_LARGE, window=window, window_image_size=window_image_size)
    return fastmim(name, encoder, _SWIN_LARGE_DECODER, epochs=400)


_SWIN_BASE = _swin_base("fastmim_swin_base")
# Appendix A.3: tables for windows of 14, resized with the images; so windows of 8, as without growth, at 128 pixels.
_SWIN_LARGE_GROWING = _swin_large("fastmim_swin_large", window=14, window_image_size=ImageSize.square(224))


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
    Recipe(summary="FastMIM, Swin-B at 128 pixels, HOG", config=_SWIN_BASE),
    Recipe(summary="FastMIM, Swin-L at 128 pixels, HOG", config=_swin_large("fastmim_swin_large", window=8)),
    Recipe(
        summary="FastMIM, Swin-B without the layers of its last stage",
        config=_swin_base("fastmim_swin_base_depth22", depth=22),
    ),
    Recipe(
        summary="FastMIM, Swin-B without its last layer",
        config=_swin_base("fastmim_swin_base_depth23", depth=23),
    ),
    Recipe(
        summary="FastMIM-P, Swin-L, images growing from 128 to 192 pixels",
        config=progressive(_SWIN_LARGE_GROWING, "fastmim_p_swin_large", epochs=_SWIN_EPOCHS),
    ),
)

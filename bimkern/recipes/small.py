"""Recipes small enough for tests and for trying options: the published ones on encoders that train in seconds."""

import re
from collections.abc import Callable
from dataclasses import replace

from bimkern.image_size import ImageSize
from bimkern.mim.schedule import resolve
from bimkern.models.cmt import CMTConfig
from bimkern.models.encoder import EncoderConfig
from bimkern.models.heads import DecoderConfig, HeadConfig
from bimkern.models.swin import SwinConfig
from bimkern.models.timm_backbone import Argument, TimmBackboneConfig
from bimkern.models.vit import ViTConfig
from bimkern.recipes.bim import FIXED_MASK, GROWING_MASK, bim, light, local
from bimkern.recipes.combined import bim_hog, bim_swin, growing
from bimkern.recipes.fastmim import SMALL_DECODER, distilled, fastmim, progressive
from bimkern.recipes.greenmim import greenmim
from bimkern.recipes.localmim import isolated, localmim, localmim_swin, with_pixels
from bimkern.recipes.mae import mae
from bimkern.recipes.maskfeat import maskfeat
from bimkern.recipes.recipe import DeferredRecipe, Recipe
from bimkern.recipes.simmim import simmim
from bimkern.recipes.vitfreeze import vitfreeze
from bimkern.train.config.run import Config, RunConfig

_ENCODER = ViTConfig(image_size=ImageSize.square(32), patch=8, width=32, depth=4, num_heads=2)
_LARGE_PATCHES = replace(_ENCODER, image_size=ImageSize.square(64), patch=16)  # for histograms of cells within a patch
_LAYERED = replace(_LARGE_PATCHES, depth=8)  # for stages of two layers each
_SWIN = SwinConfig(
    image_size=ImageSize.square(64), width=16, depths=(2, 2, 2), num_heads=(1, 2, 4), window=4
)  # masks of 16 pixels
_CMT = CMTConfig(
    widths=(8, 16, 32),
    depths=(1, 1, 2),
    num_heads=(1, 2, 4),
    reductions=(4, 2, 1),
    stem_width=8,
    image_size=ImageSize.square(64),
)
_SIZES = (32, 48, 64)  # of images that grow, in pixels
_RUN = RunConfig(steps=20, batch_size=8, base_lr=1.6e-2, precision="fp32")


def _small(config: Config) -> Recipe[Config]:
    """Shrink the heads and the run of a config on one of the encoders above; warm-up keeps its share of the run."""
    run = config.run
    schedule = resolve(config.schedule, run.epochs, run.peak_lr)
    method = replace(config.method, heads=tuple(_small_head(head) for head in config.method.heads))
    network = type(method.encoder).__name__.removesuffix("Config")
    pieces = re.sub("_(vit|swin_tiny|cmt)_test", "", config.recipe).replace("_", ", ")
    return Recipe(
        summary=f"for tests, on a tiny {network}: {pieces}",
        config=replace(config, method=method, schedule=schedule, run=_RUN),
    )


def _small_head(head: HeadConfig) -> HeadConfig:
    return replace(head, width=32, depth=1, num_heads=2) if isinstance(head, DecoderConfig) else head


def _localmim(name: str, **options: bool) -> Config:
    return localmim(name, _LAYERED, epochs=100, batch_size=2048, **options)


def _localmim_swin(name: str) -> Config:
    return localmim_swin(name, _SWIN, epochs=100, batch_size=2048)


def _fastmim(name: str, encoder: EncoderConfig = _LARGE_PATCHES) -> Config:
    config = fastmim(name, encoder, SMALL_DECODER)
    return replace(config, method=replace(config.method, encoder=encoder))  # 16 patches in place of 64


def _convnext() -> TimmBackboneConfig:
    shape: dict[str, Argument] = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
    return TimmBackboneConfig(name="convnext_atto", image_size=ImageSize.square(64), model_args=shape)


def _deferred(name: str, build: Callable[[], Config]) -> DeferredRecipe:
    pieces = name.replace("_test", "").replace("_", ", ")
    return DeferredRecipe(
        name=name, summary=f"for tests, on a tiny network of timm: {pieces}", build=lambda: _small(build()).config
    )


SMALL_RECIPES: tuple[Recipe[Config] | DeferredRecipe, ...] = (
    _small(mae("mae_vit_test", _ENCODER)),
    _small(bim("bim_vit_test", _ENCODER, FIXED_MASK)),
    _small(bim("bim_vit_test_growing", _ENCODER, GROWING_MASK)),
    _small(light(bim("", _ENCODER, FIXED_MASK), "bim_vit_test_light")),
    _small(simmim("simmim_vit_test", _LARGE_PATCHES)),
    _small(local(simmim("simmim_vit_test", _LARGE_PATCHES), "bim_simmim_vit_test")),
    _small(maskfeat("maskfeat_vit_test", _LARGE_PATCHES)),
    _small(local(maskfeat("maskfeat_vit_test", _LARGE_PATCHES), "bim_maskfeat_vit_test")),
    _small(_localmim("localmim_vit_test")),
    _small(_localmim("localmim_vit_test_biased", biased=True)),
    _small(with_pixels(_localmim("localmim_vit_test_pixels"))),
    _small(isolated(_localmim("localmim_vit_test_isolated"))),
    _small(growing(isolated(_localmim("localmim_vit_test")), "localmim_vit_test_isolated_growing")),
    _small(vitfreeze("vitfreeze_vit_test", _localmim("localmim_vit_test"))),
    _small(vitfreeze("vitfreeze_vit_test_isolated", isolated(_localmim("localmim_vit_test")))),
    _small(_fastmim("fastmim_vit_test")),
    _small(distilled("fastmim_vit_test_distilled", _fastmim("fastmim_vit_test"), teacher_layer=3)),
    _small(local(_fastmim("fastmim_vit_test"), "bim_fastmim_vit_test")),
    _small(progressive(_fastmim("fastmim_vit_test"), "fastmim_p_vit_test", _SIZES)),
    _small(progressive(local(_fastmim("fastmim_vit_test"), "bim_fastmim_vit_test"), "bim_fastmim_p_vit_test", _SIZES)),
    _small(bim_hog("bim_hog_vit_test", _LARGE_PATCHES)),
    _small(greenmim("greenmim_swin_tiny_test", _SWIN, base_lr=1.5e-4)),
    _small(_localmim_swin("localmim_swin_tiny_test")),
    _small(vitfreeze("vitfreeze_swin_tiny_test", _localmim_swin("localmim_swin_tiny_test"))),
    _small(bim_swin("bim_swin_tiny_test", _SWIN)),
    _small(simmim("simmim_swin_tiny_test", _SWIN)),
    _small(_fastmim("fastmim_swin_tiny_test", _SWIN)),
    _small(progressive(_fastmim("fastmim_swin_tiny_test", _SWIN), "fastmim_p_swin_tiny_test", _SIZES)),
    _small(_fastmim("fastmim_cmt_test", _CMT)),
    _deferred("fastmim_convnext_test", lambda: _fastmim("fastmim_convnext_test", _convnext())),
)

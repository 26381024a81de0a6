"""LocalMIM: Wang et al. 2023, "Masked Image Modeling with Local Multi-Scale Reconstruction", arXiv 2303.05251."""

from dataclasses import replace

from bimkern.mim.flow import EndToEnd, Local
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.model import Method
from bimkern.mim.schedule import Cosine
from bimkern.mim.targets import HogTarget, PixelTarget
from bimkern.models.heads import DecoderConfig
from bimkern.models.swin import SWIN_BASE, SWIN_LARGE, SwinConfig
from bimkern.models.vit import VIT_BASE, VIT_LARGE, VIT_SMALL, ViTConfig
from bimkern.recipes.greenmim import UNDECAYED, units
from bimkern.recipes.mae import mae, trained_as_mae
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.run import Config

SCALES = (4.0, 2.0, 1.0, 0.5)  # section 3.3: grids of 56, 28, 14 and 7 a side at 224 pixels
DECODER = DecoderConfig(width=256, depth=1, num_heads=8)  # section 4.1
_WARMUP_EPOCHS = {100: 10, 400: 40, 800: 40, 1600: 40}  # appendix A
_FINAL_LR = 1e-6  # of the published program, whatever the peak; appendix A says nothing

# Gradient biases for the four scales, uniform in [-1/3, 1/3]: the published program draws new ones for every run and
# does not name them (its hog_bias), so that its targets differ from run to run.
HOG_BIASES = ((0.21, -0.13), (-0.07, 0.29), (0.32, 0.05), (-0.18, -0.26))


def taps(depth: int) -> tuple[int, ...]:
    """Return the layers behind which reconstruction is read: the 2nd, 4th, L-2nd and last, section 4.4 and table 5."""
    return (1, 3, depth - 3, depth - 1)


def localmim(
    name: str,
    encoder: ViTConfig,
    *,
    epochs: int,
    batch_size: int,
    bins: int = 9,
    biased: bool = False,
    base_lr: float = 2e-4,
) -> Config:
    """HOG at four scales, fine ones from early layers.

    bins: 18 in appendix C; the published command for ViT-B takes 9 without bias, that for ViT-L 18 with it.
    """
    base = mae(name, encoder)
    biases = HOG_BIASES if biased else (None,) * len(SCALES)
    return replace(
        base,
        method=Method(
            encoder=encoder,
            taps=taps(encoder.depth),
            masker=RandomDrop(ratios=(0.75,)),  # section 4.1
            heads=tuple(replace(DECODER, match_scale=scale) for scale in SCALES),
            targets=tuple(HogTarget(bins=bins, bias=bias) for bias in biases),
            flow=EndToEnd(),
        ),
        schedule=Cosine(warmup_epochs=_WARMUP_EPOCHS[epochs], final_lr=_FINAL_LR),
        run=replace(base.run, epochs=epochs, batch_size=batch_size, base_lr=base_lr, slices=1),  # appendix A
    )


def localmim_swin(name: str, encoder: SwinConfig, *, epochs: int, batch_size: int) -> Config:
    """HOG behind every stage of a sparse Swin, on the grid of its own tokens, each of one cell."""
    taps = encoder.stage_ends
    widths = (64, *(128,) * (len(taps) - 1))  # of the published program; appendix A has 128 for all
    method = Method(
        encoder=encoder,
        taps=taps,  # section 4.4: behind every stage, merged but for the last
        masker=units(encoder),  # section 4.1, masks of GreenMIM
        heads=tuple(DecoderConfig(width=width, depth=1, num_heads=4) for width in widths),  # of the published program
        targets=(HogTarget(bins=18),),  # of the published program, which adds a random bias here too
        flow=EndToEnd(),
    )
    base = trained_as_mae(name, method)
    return replace(
        base,
        optim=replace(base.optim, undecayed=UNDECAYED),
        schedule=Cosine(warmup_epochs=_WARMUP_EPOCHS[epochs]),
        run=replace(base.run, epochs=epochs, batch_size=batch_size, base_lr=1e-4, slices=1),  # appendix A
    )


def isolated(config: Config) -> Config:
    """Cut the gradient behind every tap: table 5, "isolated", for which no program was published."""
    return replace(config, method=replace(config.method, flow=Local()))


def with_pixels(config: Config) -> Config:
    """Predict normalized pixels of every cell in place of its histogram: table 4."""
    return replace(config, method=replace(config.method, targets=(PixelTarget(normalize=True),)))


def _named(config: Config, name: str) -> Config:
    return replace(config, recipe=name)


_SMALL = localmim("localmim_vit_small", VIT_SMALL, epochs=100, batch_size=2048)
_BASE = localmim("localmim_vit_base", VIT_BASE, epochs=100, batch_size=2048)


def _large(name: str, *, biased: bool) -> Config:
    return localmim(name, VIT_LARGE, epochs=800, batch_size=4096, bins=18, biased=biased, base_lr=1.5e-4)


_SWINS = {
    "Swin-B": localmim_swin("localmim_swin_base", SWIN_BASE, epochs=100, batch_size=2048),
    # windows of 14 in the published program
    "Swin-L": localmim_swin("localmim_swin_large", replace(SWIN_LARGE, window=14), epochs=800, batch_size=4096),
}

LOCALMIM_RECIPES = (
    Recipe(summary="LocalMIM, ViT-S/16, HOG at four scales", config=_SMALL),
    Recipe(summary="LocalMIM, ViT-B/16, HOG at four scales", config=_BASE),
    Recipe(
        summary="LocalMIM, ViT-B/16, 1600 epochs",
        config=localmim("localmim_vit_base_1600", VIT_BASE, epochs=1600, batch_size=2048),
    ),
    Recipe(
        summary="LocalMIM, ViT-L/16, HOG with 18 bins at four scales",
        config=_large("localmim_vit_large", biased=False),
    ),
    Recipe(
        summary="LocalMIM, ViT-L/16, HOG of biased gradients, as in the published program",
        config=_large("localmim_vit_large_biased", biased=True),
    ),
    Recipe(
        summary="LocalMIM, ViT-B/16, normalized pixels at four scales",
        config=_named(with_pixels(_BASE), "localmim_vit_base_pixels"),
    ),
    Recipe(
        summary="LocalMIM, ViT-B/16, isolated gradients",
        config=_named(isolated(_BASE), "localmim_vit_base_isolated"),
    ),
    *(
        recipe
        for size, config in _SWINS.items()
        for recipe in (
            Recipe(summary=f"LocalMIM, sparse {size}, HOG behind every stage", config=config),
            Recipe(
                summary=f"LocalMIM, sparse {size}, normalized pixels behind every stage",
                config=_named(with_pixels(config), f"{config.recipe}_pixels"),
            ),
            Recipe(
                summary=f"LocalMIM, sparse {size}, isolated gradients",
                config=_named(isolated(config), f"{config.recipe}_isolated"),
            ),
        )
    ),
    Recipe(
        summary="LocalMIM, sparse Swin-B, 400 epochs",
        config=localmim_swin("localmim_swin_base_400", SWIN_BASE, epochs=400, batch_size=2048),
    ),
)

"""GreenMIM: Huang et al. 2022, "Green Hierarchical Vision Transformer for Masked Image Modeling", arXiv 2205.13515.

Its sparse Swin merges in Swin's own order, as the published program has done since its commit b981012.
"""

from dataclasses import replace

from bimkern.mim.flow import EndToEnd
from bimkern.mim.masking.units import SharedUnits
from bimkern.mim.model import Method
from bimkern.mim.targets import PixelTarget
from bimkern.models.heads import DecoderConfig
from bimkern.models.swin import SWIN_BASE, SWIN_LARGE, SwinConfig
from bimkern.recipes.mae import trained_as_mae
from bimkern.recipes.recipe import Recipe
from bimkern.train.config.run import Config

UNDECAYED = ("position_bias", "token")  # parts of names, of the published program


def units(encoder: SwinConfig) -> SharedUnits:
    """Mask patches of the last stage: one mask for a batch, section 3.1, of 75 %, section 4.1."""
    return SharedUnits(ratio=0.75, mask_unit=encoder.level(encoder.depth).patch // encoder.patch)


def greenmim(name: str, encoder: SwinConfig, *, base_lr: float) -> Config:
    """MAE on a Swin that computes visible patches alone; every number not set here is MAE's."""
    method = Method(
        encoder=encoder,
        taps=(encoder.depth - 1,),
        masker=units(encoder),
        heads=(DecoderConfig(width=512, depth=1, num_heads=16),),  # section 3.4
        targets=(PixelTarget(normalize=True),),  # section 3.4
        flow=EndToEnd(),
    )
    base = trained_as_mae(name, method)
    return replace(
        base,
        optim=replace(base.optim, undecayed=UNDECAYED),
        run=replace(base.run, batch_size=2048, base_lr=base_lr, slices=1),  # section 4.1
    )


GREENMIM_RECIPES = (
    Recipe(
        summary="GreenMIM, sparse Swin-B, windows of 7",
        config=greenmim("greenmim_swin_base", SWIN_BASE, base_lr=1.5e-4),  # of the published program
    ),
    Recipe(
        summary="GreenMIM, sparse Swin-L, windows of 14",
        config=greenmim("greenmim_swin_large", replace(SWIN_LARGE, window=14), base_lr=1e-4),  # likewise
    ),
)

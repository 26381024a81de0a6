"""What is compared: the recipes' methods on a small ViT or a small Swin.

The ViT's patches have 8 pixels: LocalMIM's finest histograms then have cells of 2 x 2 pixels; with patches of 4 they
would be single pixels. Swin's images have 64 pixels, of which the digits are scaled to: masks of 16 then leave 4 x 4.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bimkern.data.augment import RandomResizedCrop
from bimkern.image_size import ImageSize
from bimkern.mim.masking.units import TokenReplace
from bimkern.mim.schedule import WarmUp, resolve
from bimkern.mim.stages import equal_stages
from bimkern.models.encoder import EncoderConfig
from bimkern.models.heads import DecoderConfig, HeadConfig
from bimkern.models.swin import SwinConfig
from bimkern.models.vit import ViTConfig
from bimkern.recipes.bim import FIXED_MASK, GROWING_MASK, bim
from bimkern.recipes.combined import bim_swin
from bimkern.recipes.fastmim import SMALL_DECODER, fastmim
from bimkern.recipes.greenmim import greenmim
from bimkern.recipes.localmim import isolated, localmim, localmim_swin
from bimkern.recipes.mae import mae
from bimkern.recipes.maskfeat import maskfeat
from bimkern.recipes.simmim import simmim
from bimkern.recipes.vitfreeze import vitfreeze
from bimkern.train.config.run import Config

DEPTH = 4  # of the ViT: one layer a BIM stage
SWIN_DEPTH = 6
DEPTHS = tuple(tap + 1 for tap in equal_stages(DEPTH))  # behind the first, second, third and last BIM stage
SCRATCH, SCRATCH_SWIN = "scratch", "scratch, Swin"
CHEAPER_BIMS = ("BIM, a quarter", "BIM, a quarter of visible", "BIM, one decoder layer")
_DECODER_DEPTH = 2  # at most; the papers' are 8 (MAE, BIM) and 1 (LocalMIM, FastMIM)
WARMUP = 0.1  # of the run, for all: the papers' shares lie between 0.0125 and 0.1
_AS_THEY_ARE = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)


@dataclass(frozen=True, kw_only=True)
class StudyMethod:
    """A method on its encoder."""

    name: str
    encoder: EncoderConfig
    config: Config | None = None  # None: no pre-training
    depths: tuple[int, ...]  # that are fine-tuned and compared; all are probed
    rates_of: str = ""  # the method that searches rates for this one; empty: this one itself


def methods(side: int) -> dict[str, StudyMethod]:
    """Return all methods, by name, for images of side pixels."""
    vit = ViTConfig(image_size=ImageSize.square(side), patch=8, width=64, depth=DEPTH, num_heads=2)
    swin = SwinConfig(image_size=ImageSize.square(64), width=24, depths=(2, 2, 2), num_heads=(1, 2, 4), window=4)
    # Its taps are the 2nd, 4th, last but two and last layer, for which six are needed; of fewer it takes all stages.
    deep = localmim("localmim", replace(vit, depth=12), epochs=100, batch_size=2048)
    of_localmim = replace(deep, method=replace(deep.method, encoder=vit, taps=equal_stages(DEPTH)))
    of_localmim_swin = localmim_swin("localmim_swin", swin, epochs=100, batch_size=2048)
    configs = {
        "MAE": mae("mae", vit),
        "BIM": bim("bim", vit, FIXED_MASK),
        **dict(zip(CHEAPER_BIMS, _cheaper(bim("bim", vit, FIXED_MASK)), strict=True)),
        "BIM, growing mask": bim("bim", vit, GROWING_MASK),
        "LocalMIM": of_localmim,
        "LocalMIM, isolated": isolated(of_localmim),
        "FastMIM": fastmim("fastmim", vit, SMALL_DECODER),
        "ViTFreeze": vitfreeze("vitfreeze", of_localmim),
        "SimMIM": simmim("simmim", vit.resized(ImageSize.square(128))),  # of which its units of 32 pixels are some
        "MaskFeat": maskfeat("maskfeat", vit),
        "SimMIM, Swin": simmim("simmim", swin),
        "GreenMIM, Swin": greenmim("greenmim", swin, base_lr=1.5e-4),
        "LocalMIM, Swin": of_localmim_swin,
        "FastMIM, Swin": fastmim("fastmim", swin, SMALL_DECODER),
        "ViTFreeze, Swin": vitfreeze("vitfreeze", of_localmim_swin),
        "BIM, Swin": bim_swin("bim", swin),
    }
    found = [
        StudyMethod(name=SCRATCH, encoder=vit, depths=(DEPTH,)),
        StudyMethod(name=SCRATCH_SWIN, encoder=swin, depths=(SWIN_DEPTH,)),
    ]
    for name, config in configs.items():
        encoder = swin if name.endswith("Swin") else vit
        depths = DEPTHS if name in ("MAE", "BIM", *CHEAPER_BIMS) else (encoder.depth,)
        of = {"rates_of": "BIM"} if name in CHEAPER_BIMS else {}
        found.append(StudyMethod(name=name, encoder=encoder, config=_small(config, encoder), depths=depths, **of))
    for depth in DEPTHS[:-1]:
        cut = vit.cut(depth)
        config = _small(mae("mae", cut), cut)
        found.append(StudyMethod(name=alone(depth), encoder=cut, config=config, depths=(depth,), rates_of="MAE"))
    return {method.name: method for method in found}


def alone(depth: int) -> str:
    """Name the MAE of that many layers alone."""
    return f"MAE of {depth} layers"


def _cheaper(config: Config) -> Iterator[Config]:
    """Yield BIM that decodes a quarter of the masked patches; that has them attend to visible ones; of one layer."""
    (head,) = config.method.heads
    assert isinstance(head, DecoderConfig)
    quarter = replace(head, share=0.25)
    for cheaper in (quarter, replace(quarter, attends="visible"), replace(head, depth=1)):
        yield replace(config, method=replace(config.method, heads=(cheaper,)))


def _small(config: Config, encoder: EncoderConfig) -> Config:
    """Put a recipe's method on a small encoder, with small heads, the warm-up of all, and images as they are."""
    method, masker = config.method, config.method.masker
    if isinstance(masker, TokenReplace) and isinstance(encoder, ViTConfig):
        masker = replace(masker, mask_unit=1)  # SimMIM's 32 pixels would be a whole digit
    heads = tuple(map(_small_head, method.heads))
    schedule = resolve(config.schedule, config.run.epochs, config.run.peak_lr)
    assert isinstance(schedule, WarmUp)
    return replace(
        config,
        method=replace(method, encoder=encoder, heads=heads, masker=masker),
        schedule=replace(schedule, warmup=WARMUP),
        augment=_AS_THEY_ARE,
    )


def _small_head(head: HeadConfig) -> HeadConfig:
    if not isinstance(head, DecoderConfig):
        return head
    return replace(head, width=32, depth=min(head.depth, _DECODER_DEPTH), num_heads=2)

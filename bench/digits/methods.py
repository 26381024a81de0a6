"""What is compared: the recipes' methods on one small encoder.

Patches have 8 of 32 pixels: LocalMIM's finest histograms then have cells of 2 x 2 pixels; with patches of 4 they would
be single pixels. Of 16 patches three quarters leave 4 visible; the growing mask leaves 5, 4, 3 and 2.
"""

from dataclasses import dataclass, replace

from bimkern.mim.schedule import Cosine, resolve
from bimkern.mim.stages import equal_stages
from bimkern.models.heads import DecoderConfig, HeadConfig
from bimkern.models.vit import ViTConfig
from bimkern.recipes.bim import FIXED_MASK, GROWING_MASK, bim
from bimkern.recipes.fastmim import SMALL_DECODER, fastmim
from bimkern.recipes.localmim import isolated, localmim
from bimkern.recipes.mae import mae
from bimkern.recipes.vitfreeze import vitfreeze
from bimkern.train.config.run import Config

ENCODER = ViTConfig(image_size=32, patch=8, width=64, depth=8, num_heads=2)
DEPTHS = tuple(tap + 1 for tap in equal_stages(ENCODER.depth))  # behind the first, second, third and last BIM stage
_DECODER_DEPTH = 2  # at most; the papers' are 8 (MAE, BIM) and 1 (LocalMIM, FastMIM)
_WARMUP = 0.1  # of the run, for all: the papers' shares lie between 0.0125 and 0.1


@dataclass(frozen=True, kw_only=True)
class DigitsMethod:
    name: str
    config: Config | None  # None: no pre-training before fine-tuning
    depths: tuple[int, ...] = (ENCODER.depth,)  # that are evaluated
    rates_of: str = ""  # the method that searches rates for this one; empty: this one itself


def _small(config: Config, depth: int = ENCODER.depth) -> Config:
    """Put a recipe's method on the small encoder, with small heads and the warm-up of all."""
    method, run = config.method, config.run
    schedule = resolve(config.schedule, run.epochs, run.peak_lr)
    assert isinstance(schedule, Cosine)
    method = replace(method, encoder=replace(ENCODER, depth=depth), heads=tuple(map(_small_head, method.heads)))
    return replace(config, method=method, schedule=replace(schedule, warmup=_WARMUP))


def _small_head(head: HeadConfig) -> HeadConfig:
    assert isinstance(head, DecoderConfig)
    return replace(head, width=32, depth=min(head.depth, _DECODER_DEPTH), num_heads=2)


def alone(depth: int) -> str:
    """Name the MAE of that many layers alone."""
    return f"MAE of {depth} layers"


_LOCALMIM = _small(localmim("localmim", ENCODER, epochs=100, batch_size=2048))

METHODS: dict[str, DigitsMethod] = {
    method.name: method
    for method in (
        DigitsMethod(name="scratch", config=None),
        DigitsMethod(name="MAE", config=_small(mae("mae", ENCODER)), depths=DEPTHS),
        DigitsMethod(name="BIM", config=_small(bim("bim", ENCODER, FIXED_MASK)), depths=DEPTHS),
        DigitsMethod(name="BIM, growing mask", config=_small(bim("bim", ENCODER, GROWING_MASK))),
        DigitsMethod(name="LocalMIM", config=_LOCALMIM),
        DigitsMethod(name="LocalMIM, isolated", config=isolated(_LOCALMIM)),
        DigitsMethod(name="FastMIM", config=_small(fastmim("fastmim", ENCODER, SMALL_DECODER))),
        DigitsMethod(name="ViTFreeze", config=vitfreeze("vitfreeze", _LOCALMIM)),
        *(
            DigitsMethod(
                name=alone(depth),
                config=_small(mae("mae", replace(ENCODER, depth=depth)), depth),
                depths=(depth,),
                rates_of="MAE",
            )
            for depth in DEPTHS[:-1]
        ),
    )
}

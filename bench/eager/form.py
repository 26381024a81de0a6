"""Which methods this folder has a usual form of, and what it needs to know of one."""

from dataclasses import dataclass

from bimkern.mim.flow import Local
from bimkern.mim.masking import RandomDrop
from bimkern.mim.model import Method
from bimkern.mim.targets import PixelTarget
from bimkern.models.heads import DecoderConfig
from bimkern.models.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class Form:
    """An autoencoder of pixels whose hidden patches are left out, with the same decoder behind every tap."""

    encoder: ViTConfig
    decoder: DecoderConfig
    taps: tuple[int, ...]
    kept: list[int]  # patches of every stage
    normalize: bool  # the pixels of a patch, by their own mean and variance
    local: bool  # every stage learns alone


def find_form(method: Method) -> Form | None:
    """Return the usual form of a method, or None where none is written for one of its pieces."""
    masker, decoder, target = method.masker, method.heads[0], method.targets[0]
    if not isinstance(masker, RandomDrop) or not isinstance(target, PixelTarget):
        return None
    if not isinstance(decoder, DecoderConfig) or decoder.match_scale is not None or not decoder.positions:
        return None
    if masker != RandomDrop(ratios=masker.ratios) or target != PixelTarget(normalize=target.normalize):
        return None
    if len({*method.heads}) > 1 or len({*method.targets}) > 1:
        return None
    return Form(
        encoder=method.encoder,
        decoder=decoder,
        taps=method.taps,
        kept=masker.entering(method.encoder.grid, len(method.taps)),
        normalize=target.normalize,
        local=isinstance(method.flow, Local),
    )

"""Which methods this folder has a usual form of, and what it needs to know of one."""

from dataclasses import dataclass

from bimkern.mim.flow import EndToEnd, Local
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.model import Method
from bimkern.mim.targets import PixelTarget
from bimkern.models.heads import DecoderConfig
from bimkern.models.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class Form:
    """An autoencoder of pixels whose masked patches are left out, with the same decoder behind every tap."""

    encoder: ViTConfig
    decoder: DecoderConfig
    taps: tuple[int, ...]
    kept: list[int]  # patches of every stage
    normalize: bool  # the pixels of a patch, by their own mean and variance
    local: bool  # every stage learns alone


def find_form(method: Method) -> Form | None:
    """Return the usual form of a method, or None where none is written for one of its pieces or their options."""
    masker, head, target, encoder = method.masker, method.heads[0], method.targets[0], method.encoder
    if not (isinstance(encoder, ViTConfig) and isinstance(masker, RandomDrop)):
        return None
    if not (isinstance(head, DecoderConfig) and isinstance(target, PixelTarget)):
        return None
    decoder = DecoderConfig(width=head.width, depth=head.depth, num_heads=head.num_heads, mlp_ratio=head.mlp_ratio)
    local = isinstance(method.flow, Local)
    plain = Method(
        encoder=method.encoder,
        taps=method.taps,
        masker=RandomDrop(ratios=masker.ratios),
        heads=(decoder,) * len(method.heads),
        targets=(PixelTarget(normalize=target.normalize),) * len(method.targets),
        flow=Local() if local else EndToEnd(),
    )
    if method != plain:
        return None
    return Form(
        encoder=encoder,
        decoder=decoder,
        taps=method.taps,
        kept=masker.entering(encoder.grid, len(method.taps)),
        normalize=target.normalize,
        local=local,
    )

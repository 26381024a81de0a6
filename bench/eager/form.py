"""Which methods this folder has a usual form of, and what it needs to know of one."""

from dataclasses import dataclass

from bimkern.mim.flow import EndToEnd, Local
from bimkern.mim.masking.random import RandomDrop
from bimkern.mim.masking.units import SharedUnits
from bimkern.mim.model import Method
from bimkern.mim.targets import PixelTarget
from bimkern.models.heads import DecoderConfig
from bimkern.models.swin import SwinConfig
from bimkern.models.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class Form:
    """An autoencoder of pixels whose masked patches are left out, with the same decoder behind every tap."""

    encoder: ViTConfig | SwinConfig
    decoder: DecoderConfig
    taps: tuple[int, ...]
    kept: list[int]  # patches of every stage; of a Swin, those of its last level
    normalize: bool  # the pixels of a patch, by their own mean and variance
    local: bool  # every stage learns alone


def find_form(method: Method) -> Form | None:
    """Return the usual form of a method, or None where none is written for one of its pieces or their options."""
    head, target, encoder = method.heads[0], method.targets[0], method.encoder
    masker = _plain_masker(method)
    if masker is None or not isinstance(encoder, ViTConfig | SwinConfig):
        return None
    if not (isinstance(head, DecoderConfig) and isinstance(target, PixelTarget)):
        return None
    decoder = DecoderConfig(width=head.width, depth=head.depth, num_heads=head.num_heads, mlp_ratio=head.mlp_ratio)
    local = isinstance(method.flow, Local)
    plain = Method(
        encoder=method.encoder,
        taps=method.taps,
        masker=masker,
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
        kept=_kept(masker, encoder, len(method.taps)),
        normalize=target.normalize,
        local=local,
    )


def _plain_masker(method: Method) -> RandomDrop | SharedUnits | None:
    """Return the masker with nothing but its ratios, or None where no usual encoder takes its masks."""
    masker, encoder = method.masker, method.encoder
    if isinstance(masker, RandomDrop) and isinstance(encoder, ViTConfig):
        return RandomDrop(ratios=masker.ratios)
    if isinstance(masker, SharedUnits) and isinstance(encoder, SwinConfig) and len(method.taps) == 1:
        return SharedUnits(ratio=masker.ratio, mask_unit=encoder.level(encoder.depth).patch // encoder.patch)
    return None


def _kept(masker: RandomDrop | SharedUnits, encoder: ViTConfig | SwinConfig, num_stages: int) -> list[int]:
    first, last = (encoder.level(layers).patch for layers in (0, encoder.depth))
    grid = encoder.level(0).grid(*encoder.image_size)
    return [count * first**2 // last**2 for count in masker.entering(grid, num_stages)]

"""Make modules smaller without another structure, so that it takes little time to try them.

Patches get few pixels and decoders few channels, the number of patches stays. What a host computes wrongly or otherwise
shows as well in few numbers as in many.

Shapes: C channels, D E widths, p side of a patch.
"""

from typing import Any

from torch import nn

from bimkern.dropin import layers
from bimkern.dropin.trial import twin

SIDE = 2  # of a patch, in pixels
WIDTH, DECODER_WIDTH = 16, 12


def embedding(embed: Any, convolution: str, size: str, side: int = SIDE) -> nn.Module:
    """Return an embedding of patches of few pixels to WIDTH channels.

    Args:
        embed: of a host, with its `patch_size`.
        convolution: name of its layer, which must do nothing but cut patches.
        size: name of the size of its images.
        side: of a patch, in pixels.

    Raises:
        ValueError: it is of another kind.
    """
    layer = getattr(embed, convolution)
    if not layers.is_plain(embed, layer):
        raise ValueError("the embedding must be a plain convolution")
    p = layer.kernel_size[0]
    weight = (WIDTH, layer.weight.shape[1], side, side)
    small = twin(layer, weight=weight, bias=(WIDTH,), kernel_size=(side, side), stride=(side, side))
    sizes = {name: scaled(getattr(embed, name), p, side) for name in (size, "patch_size")}
    return twin(embed, **{convolution: small}, **sizes)


def scaled(size: Any, p: int, side: int) -> Any:
    """Return a length, or a pair of them, in which a patch of p pixels has `side`."""
    if isinstance(size, int):
        if size % p:
            raise ValueError(f"{size} must be whole patches of {p} pixels")
        return size // p * side
    return type(size)(scaled(length, p, side) for length in size)


def decoder(module: Any) -> dict[str, Any]:
    """Return what changes in a module that holds an MAE's decoder, so that it has few channels."""
    return {
        "mask_token": (1, 1, DECODER_WIDTH),
        "decoder_pos_embed": (*module.decoder_pos_embed.shape[:2], DECODER_WIDTH),
        "decoder_embed": linear(module.decoder_embed, WIDTH, DECODER_WIDTH),
        "decoder_norm": layer_norm(module.decoder_norm, DECODER_WIDTH),
    }


def linear(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """Return a linear layer with as many features."""
    _check(layer, nn.Linear)
    return twin(layer, weight=(outputs, inputs), bias=(outputs,), in_features=inputs, out_features=outputs)


def layer_norm(layer: nn.Module, width: int) -> nn.Module:
    """Return a norm of as many features."""
    _check(layer, nn.LayerNorm)
    return twin(layer, weight=(width,), bias=(width,), normalized_shape=(width,))


def _check(layer: nn.Module, kind: type[nn.Module]) -> None:
    if type(layer) is not kind:
        raise ValueError(f"the layer must be {kind.__name__}, got {type(layer).__name__}")

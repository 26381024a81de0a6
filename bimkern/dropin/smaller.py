"""Make modules smaller, without another structure, so that it takes little time to try them.

Patches get few pixels and layers few channels; the number of patches stays. What a host computes otherwise than its
replacement shows as well in few numbers as in many.
"""

from typing import Any

from torch import nn

from bimkern.dropin import layers
from bimkern.dropin.trial import twin

SIDE = 2  # of a patch, in pixels
WIDTH, DECODER_WIDTH = 16, 12  # two, so that one in place of the other shows


def embedding(embed: Any, convolution: str, size: str, side: int = SIDE) -> nn.Module:
    """Return an embedding of patches of few pixels, in WIDTH channels.

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
        raise ValueError("a patch embedding must be a plain convolution")
    p = layer.kernel_size[0]
    weight = (WIDTH, layer.weight.shape[1], side, side)
    small = twin(layer, weight=weight, bias=(WIDTH,), kernel_size=(side, side), stride=(side, side))
    sizes = {name: scaled(getattr(embed, name), p, side) for name in (size, "patch_size")}
    return twin(embed, **{convolution: small}, **sizes)


def scaled(size: Any, p: int, side: int = SIDE) -> Any:
    """Return a length, or a pair of them, as long in patches of `side` pixels as it is in patches of p.

    Raises:
        ValueError: it holds no whole number of patches, or patches have fewer pixels: what is too small for a
            replacement must not be tried in a larger form.
    """
    if not isinstance(size, int):
        return type(size)(scaled(length, p, side) for length in size)
    if p < side:
        raise ValueError(f"a patch must have a side of at least {side} pixels, got {p}")
    if size % p:
        raise ValueError(f"a length must be whole patches of {p} pixels, got {size}")
    return size // p * side


def last(tensor: Any, width: int) -> tuple[int, ...]:
    """Return the shape of a tensor of tokens with as many channels."""
    return (*tensor.shape[:-1], width)


def tokens(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return what changes in a module so that its own tokens [1, T, D] have WIDTH channels (`changes` of `twin`)."""
    parameters = {name: p for name, p in module._parameters.items() if p is not None and p.ndim == 3}
    return {name: last(p, WIDTH) for name, p in parameters.items()}


def decoder(module: Any) -> dict[str, Any]:
    """Return what changes in a module so that the MAE decoder in it, but for its blocks, has DECODER_WIDTH channels."""
    return {
        "mask_token": last(module.mask_token, DECODER_WIDTH),
        "decoder_pos_embed": last(module.decoder_pos_embed, DECODER_WIDTH),
        "decoder_embed": narrow(module.decoder_embed, WIDTH, DECODER_WIDTH),
        "decoder_norm": narrow(module.decoder_norm, DECODER_WIDTH),
    }


def narrow(layer: nn.Module, inputs: int, outputs: int | None = None) -> nn.Module:
    """Return a layer, or a sequence of layers, with as many channels.

    Raises:
        ValueError: it is of another kind than those below.
    """
    outputs = inputs if outputs is None else outputs
    match layer:
        case nn.Identity():
            return layer
        case nn.LayerNorm():
            return twin(layer, weight=(inputs,), bias=(inputs,), normalized_shape=(inputs,))
        case nn.Linear():
            return twin(layer, weight=(outputs, inputs), bias=(outputs,), in_features=inputs, out_features=outputs)
        case nn.Sequential() | nn.ModuleList():
            children = {}
            for name, child in layer.named_children():
                children[name] = narrow(child, inputs, outputs)
                inputs = outputs if isinstance(child, nn.Linear) else inputs
            return twin(layer, **children)
    raise ValueError(f"a layer must be linear or a norm, got {type(layer).__name__}")

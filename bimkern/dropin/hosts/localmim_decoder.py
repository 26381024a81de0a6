"""Find the pieces of a LocalMIM-style decoder by what they are: their names differ from copy to copy.

Shapes: N patches, E width of the decoder.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from bimkern.dropin import smaller
from bimkern.dropin.trial import stand_ins, twin
from bimkern.ops.match import MatchLayers
from bimkern.ops.match_fused import NORM_EPS


class Decoder(NamedTuple):
    """What a decoder is made of."""

    embed: nn.Module
    blocks: nn.ModuleList
    norm: nn.Module
    mask_token: Tensor  # [1, 1, E]
    pos: Tensor  # [1, 1+N, E]
    head: MatchLayers


class _Form(NamedTuple):
    """How a scale's head is written: its layers, and the parameters that each of them holds ("" for none)."""

    layers: tuple[str, ...]
    names: tuple[str, ...]


_UP, _NORM, _POOL, _PRED = "ConvTranspose2d(2, stride=2)", "a norm of channels", "AvgPool2d(2)", "Conv2d(1)"
_FORMS: dict[float, _Form] = {
    4: _Form((_UP, _NORM, "GELU", _UP, _PRED), ("up1", "norm", "", "up2", "pred")),
    2: _Form((_UP, _PRED), ("up1", "pred")),
    1: _Form((_PRED,), ("pred",)),
    0.5: _Form((_POOL, _PRED), ("", "pred")),
}

_FEW = 8  # channels, of which the widest head takes a quarter
_TWO, _ONE, _NONE = (2, 2), (1, 1), (0, 0)
# type -> its name above and how it must be set; a layer of another type may be a norm.
_KNOWN: dict[type, tuple[str, dict[str, Any]]] = {
    nn.ConvTranspose2d: (
        _UP,
        {
            "kernel_size": _TWO,
            "stride": _TWO,
            "padding": _NONE,
            "output_padding": _NONE,
            "dilation": _ONE,
            "groups": _ONE,
        },
    ),
    nn.Conv2d: (_PRED, {"kernel_size": _ONE, "stride": _ONE, "padding": _NONE, "groups": _ONE}),
    nn.AvgPool2d: (_POOL, {"kernel_size": _TWO, "stride": _TWO, "padding": _NONE, "divisor_override": None}),
    nn.GELU: ("GELU", {"approximate": "none"}),
}
_DIMS = {
    _UP: {"weight": 4, "bias": 1},
    _PRED: {"weight": 4, "bias": 1},
    _NORM: {"weight": 1, "bias": 1},
    _POOL: {},
    "GELU": {},
}


def read(decoder: Any, scale: float, num_patches: int) -> Decoder:
    """Return the pieces of a decoder.

    Raises:
        ValueError: there is not one of each, or the head of that scale has no fused form; the message names it.
    """
    children = list(decoder.children())
    values = [*decoder._parameters.values(), *decoder._buffers.values()]
    tensors = [x for x in values if x is not None and x.ndim == 3 and len(x) == 1]
    embed, blocks, norm = (
        _only(f"nn.{kind.__name__}", [child for child in children if isinstance(child, kind)])
        for kind in (nn.Linear, nn.ModuleList, nn.LayerNorm)
    )
    mask_token, pos = (
        _only(f"tensor [1, {length}, E]", [x for x in tensors if x.shape[1] == length])
        for length in (1, 1 + num_patches)
    )
    head = [child for child in children if not any(child is known for known in (embed, blocks, norm))]
    return Decoder(embed, blocks, norm, mask_token, pos, _match_layers(_flat(head), scale))


def narrow(decoder: Any, length: int) -> nn.Module:
    """Return a decoder of the same structure with few channels, which predicts as many values of a cell."""
    tensors = decoder._parameters | decoder._buffers
    changes: dict[str, Any] = {
        name: smaller.last(x, _FEW) for name, x in tensors.items() if x is not None and x.ndim == 3
    }
    width = _FEW
    for name, child in decoder.named_children():
        match child:
            case nn.ModuleList():
                changes[name] = stand_ins()
            case nn.Linear():
                changes[name] = smaller.narrow(child, smaller.WIDTH, width)
            case _:
                changes[name], width = _narrow(child, width, length)
    return twin(decoder, **changes)


def _narrow(layer: Any, width: int, length: int) -> tuple[nn.Module, int]:
    """Return a layer of a head for as many channels, and how many it returns."""
    match layer:
        case nn.Sequential():
            children = {}
            for name, child in layer.named_children():
                children[name], width = _narrow(child, width, length)
            return twin(layer, **children), width
        case nn.ConvTranspose2d():
            outputs = width * layer.out_channels // layer.in_channels
            return twin(layer, weight=(width, outputs, *layer.kernel_size), bias=(outputs,)), outputs
        case nn.Conv2d():
            return twin(layer, weight=(length, width, *layer.kernel_size), bias=(length,)), length
    names = ("weight", "bias", "normalized_shape")  # of a norm, if any
    return twin(layer, **{name: (width,) for name in names if getattr(layer, name, None) is not None}), width


def _only(what: str, found: list[Any]) -> Any:
    if len(found) != 1:
        raise ValueError(f"a decoder must hold one {what}, got {len(found)}")
    return found[0]


def _flat(modules: list[nn.Module]) -> list[Any]:
    """Return layers in order, those of nested nn.Sequential too, without nn.Identity."""
    nested = [_flat(list(module)) if type(module) is nn.Sequential else [module] for module in modules]
    return [layer for layers in nested for layer in layers if type(layer) is not nn.Identity]


def _match_layers(head: list[Any], scale: float) -> MatchLayers:
    form = _FORMS.get(scale)
    if form is None:
        raise ValueError(f"the scale of a decoder must be one of {', '.join(f'{x:g}' for x in _FORMS)}, got {scale:g}")
    found = tuple(map(_described, head))
    if found != form.layers:
        raise ValueError(f"the head of scale {scale:g} must be {', '.join(form.layers)}, got {', '.join(found)}")
    layers = [(name, layer) for name, layer in zip(form.names, head, strict=True) if name]
    return MatchLayers(**{f"{name}_{x}": getattr(layer, x) for name, layer in layers for x in ("weight", "bias")})


def _described(layer: Any) -> str:
    """Return a layer as _FORMS writes it, or as it writes itself where none of them is like it."""
    name, settings = _KNOWN.get(type(layer), (_NORM, {"eps": NORM_EPS}))
    dims = {key: p.ndim for key, p in layer._parameters.items() if p is not None}
    suits = all(_pair(getattr(layer, key, None)) == value for key, value in settings.items())
    return name if suits and dims == _DIMS[name] else " ".join(repr(layer).split())


def _pair(value: Any) -> Any:
    return (value, value) if type(value) is int else value

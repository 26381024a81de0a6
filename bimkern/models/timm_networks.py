"""Feature networks of timm, built by name with random weights and cut into levels; timm is imported here alone.

Shapes: B images, C channels, h w rows and columns of a feature map, D width.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from bimkern import optional
from bimkern.errors import closest
from bimkern.image_size import ImageSize
from bimkern.models.encoder import Level

Arguments = Mapping[str, Any]

# What networks are asked for, so that images may be of any size and no path is dropped, as in all pre-training here.
# timm does not list which network has which argument.
_WANTED = {"strict_img_size": False, "dynamic_mask": True, "dynamic_img_size": True, "drop_path_rate": 0.0}
_PATCHWISE = (nn.LayerNorm, nn.Identity, nn.Dropout, nn.ReLU, nn.GELU, nn.SiLU)  # modules that mix no patches


class NetworkError(ValueError):
    """timm has no such network, or it is of no use here; the message names the value and says why."""


@dataclass(frozen=True)
class Network:
    """A feature network in parts: names and modules of its stem, and of every level."""

    stem: Mapping[str, nn.Module]  # empty where the only level takes the images themselves
    levels: tuple[Mapping[str, nn.Module], ...]
    patch: int  # pixels a side of a cell of the last level
    widths: frozenset[int]  # of the maps that timm reads

    @property
    def parts(self) -> tuple[Mapping[str, nn.Module], ...]:
        return (self.stem, *self.levels)


@dataclass(frozen=True)
class Description:
    """What a network makes of images of one size."""

    levels: tuple[Level, ...]  # of the stem, or of images cut into squares, and of every level
    channels_last: tuple[bool, ...]  # whether maps are [B, h, w, D] instead of [B, D, h, w], likewise
    patchwise: bool  # whether the stem mixes no patches
    names: frozenset[str]  # of its weights


@contextmanager
def without_values() -> Iterator[None]:
    """Build networks on the meta device, whatever else tensors are made of now."""
    with unset_fake_temporarily(), torch.device("meta"), torch.no_grad():
        yield


def create(name: str, image_size: ImageSize, arguments: Arguments) -> Network:
    """Build a feature network for images of image_size on the current device; under fake tensors it has shapes alone.

    Raises:
        NetworkError: timm is missing or has no such network, or that has no maps of features.
    """
    wanted = {"img_size": image_size.as_argument, **_WANTED}
    if type(torch.empty(0)) is torch.Tensor:
        return _in_parts(_create(name, {**arguments, "features_only": True}, wanted)[0], name)
    with without_values():  # timm reads values of tensors while it builds
        net, _ = _create(name, {**arguments, "features_only": True}, wanted)
    return _in_parts(net._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype)), name)


def create_whole(name: str, image_size: ImageSize, arguments: Arguments) -> tuple[Any, dict[str, Any]]:
    """Build what a feature network is taken from; return it with the arguments that it was built with."""
    net, sized = _create(name, arguments, {"img_size": image_size.as_argument})
    return net, {**arguments, **sized}


def describe(name: str, built_for: ImageSize, image_size: ImageSize, arguments: Arguments) -> Description:
    """Run a network that is built for one image size on images of another, without values.

    Raises:
        NetworkError: as create, or it does not take such images.
    """
    with without_values():
        network = create(name, built_for, arguments)
        if not image_size.is_multiple(network.patch):
            raise NetworkError(f"image_size must be a multiple of {network.patch} for {name}, got {image_size}")
        maps: Any = torch.zeros(1, arguments["in_chans"], *image_size)
        levels, channels_last = [], []
        if not network.stem:
            levels, channels_last = [Level(maps.shape[1] * network.patch**2, network.patch)], [False]
        for part in filter(None, network.parts):
            try:
                for module in part.values():
                    maps = module.eval()(maps)
                maps = maps[-1] if isinstance(maps, list) else maps
                channels_last.append(_is_channels_last(maps.shape, image_size, network.widths))
            except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
                reason = f" ({' '.join(str(error).split())})" if str(error) else ""
                message = f"{name} built for {built_for} pixels does not take images of {image_size} pixels{reason}"
                raise NetworkError(message) from error
            width, *grid = maps[0].movedim(-1, 0).shape if channels_last[-1] else maps.shape[1:]
            if image_size.height % grid[0]:
                pixels = f"{image_size.height} x {image_size.width} pixels"
                raise NetworkError(f"{name} makes {grid[0]} x {grid[1]} cells of {pixels}")
            levels.append(Level(width, image_size.height // grid[0]))
        names = frozenset(weight for part in network.parts for weight in nn.ModuleDict(part).state_dict())
    return Description(tuple(levels), tuple(channels_last), _is_patchwise(network.stem), names)


def _is_channels_last(shape: torch.Size, image: ImageSize, widths: frozenset[int]) -> bool:
    """Return which dimension of the maps of an image is their width: rows and columns are as many to each other there.

    Where that holds of both, as of 64 maps of 32 x 16, the width is one that timm knows.

    Raises:
        ValueError: it is no such map.
    """
    grids = {False: shape[2:], True: shape[1:3]} if len(shape) == 4 else {}
    found = [last for last, (rows, columns) in grids.items() if rows * image.width == columns * image.height]
    if len(found) > 1 and not image.is_square:
        found = [last for last in found if shape[3 if last else 1] in widths]
    if not found or (len(found) > 1 and not image.is_square):
        kind = "square map" if image.is_square else f"map of images of {image} pixels for sure"
        raise ValueError(f"a level puts out {list(shape)}, which is no {kind}")
    return found[0]


def _is_patchwise(stem: Mapping[str, nn.Module]) -> bool:
    leaves = [m for part in stem.values() for m in part.modules() if not any(m.children())]
    convolutions = [m for m in leaves if isinstance(m, nn.Conv2d)]
    others = [m for m in leaves if not isinstance(m, (nn.Conv2d, *_PATCHWISE))]
    apart = all(m.kernel_size == m.stride and not any(m.padding) for m in convolutions)
    return bool(convolutions) and apart and not others


def _in_parts(net: Any, name: str) -> Network:
    """Cut a feature network where timm reads it, if it is a sequence of modules."""
    info = getattr(net, "feature_info", None)
    if info is None:
        raise NetworkError(f"{name} has no maps of features (timm's feature_info)")
    patch, widths = info.reduction()[-1], frozenset(info.channels())
    if type(net) is not _timm().models.FeatureListNet:
        return Network({}, ({"net": net},), patch, widths)
    sections: list[dict[str, nn.Module]] = [{}]
    for part, module in net.items():
        sections[-1][part] = module
        if part in net.return_layers:
            sections.append({})
    stem, *levels = filter(None, sections)
    *before, first = stem
    if before and any(stem[first].children()):  # else the stem itself is the first level that timm reads
        levels.insert(0, {first: stem.pop(first)})
    return Network(stem, tuple(levels), patch, widths)


def _create(name: str, arguments: Arguments, wanted: Arguments) -> tuple[Any, dict[str, Any]]:
    """Build a network with all arguments, and those of the wanted ones that it has, which are returned."""
    timm = _timm()
    if not timm.is_model(name) or ":" in name:
        architecture = name.rpartition("/")[2].partition(".")[0]
        remedy = "timm.list_models() names all"
        raise NetworkError(f"timm has no {name!r}; {closest(architecture, timm.list_models(), remedy)}")
    wanted = {key: value for key, value in wanted.items() if key not in arguments}
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return timm.create_model(name, pretrained=False, **arguments, **wanted), wanted
        except TypeError as error:
            refused = [key for key in wanted if f"'{key}'" in str(error)]
            if not refused:
                raise NetworkError(_cannot(name, arguments, error)) from error
            wanted = {key: value for key, value in wanted.items() if key not in refused}
        except Exception as error:
            raise NetworkError(_cannot(name, {**arguments, **wanted}, error)) from error


def _cannot(name: str, arguments: Arguments, error: Exception) -> str:
    ours = {"features_only", *_WANTED}
    given = ", ".join(f"{key}={value}" for key, value in arguments.items() if key not in ours)
    return f"timm cannot build {name} with {given} ({optional.first_line(error)})"


def _timm() -> ModuleType:
    try:
        return optional.load_timm("backbones by name need timm")
    except optional.Unusable as reason:
        raise NetworkError(str(reason)) from reason

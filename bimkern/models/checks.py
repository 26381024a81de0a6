"""Checks that the configs of encoders share."""

import math
from typing import Any

from bimkern.image_size import ImageSize


def check_counts(config: Any, *names: str) -> None:
    """Refuse a config in which one of the named fields is below 1.

    Raises:
        ValueError: the message names the field.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{type(config).__name__}: {name} must be at least 1, got {getattr(config, name)}")


def read_sizes(config: Any, *names: str) -> None:
    """Read the named fields of a config that is being built as sizes of images; none stays none.

    Raises:
        ValueError: one says no size; the message names the field.
    """
    for name in names:
        if (value := getattr(config, name)) is not None:
            object.__setattr__(config, name, ImageSize.read(value, f"{type(config).__name__}: {name}"))


def size_of(encoder: Any) -> ImageSize:
    """Return the image size of an encoder's config, which may be a user's own.

    Raises:
        ValueError: it is of another type.
    """
    size = encoder.image_size
    if not isinstance(size, ImageSize):
        name = type(encoder).__name__
        raise ValueError(f"{name}: image_size must be an ImageSize of bimkern.image_size, got {size!r}")
    return size


def check_mlp_ratio(config: Any, width: int) -> None:
    """Refuse a config whose narrowest MLP, of tokens of a width, would have no inner values.

    Raises:
        ValueError: mlp_ratio is not above 0 and finite, or too small.
    """
    name, ratio = type(config).__name__, config.mlp_ratio
    if not 0 < ratio < math.inf:
        raise ValueError(f"{name}: mlp_ratio must be above 0 and finite, got {ratio}")
    if int(width * ratio) < 1:
        raise ValueError(f"{name}: mlp_ratio must be at least 1 / {width}, for one inner value, got {ratio}")

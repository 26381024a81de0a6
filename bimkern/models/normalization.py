"""By which mean and standard deviation of every channel images are normalized, as exported files say it."""

import json
import math
from collections.abc import Mapping

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of every channel, of values in [0, 1]

_ROUNDING = 1e-3


def said_statistics(metadata: Mapping[str, str], channels: int) -> Statistics:
    """Read what the metadata of an exported file say, in JSON.

    Raises:
        KeyError: they say nothing.
        ValueError: they say something else.
    """
    texts = metadata["mean"], metadata["std"]
    try:
        mean, std = (tuple(float(value) for value in json.loads(text)) for text in texts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"its mean and std are wrong ({error})") from error
    if not len(mean) == len(std) == channels:
        raise ValueError(f"its mean and std must hold {channels} values, got {mean} and {std}")
    return checked((mean, std))


def checked(statistics: Statistics) -> Statistics:
    """Return them; raise ValueError where images cannot be normalized by them."""
    mean, std = statistics
    if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
        raise ValueError(f"its mean and std must be finite, and std above 0, got {mean} and {std}")
    return statistics


def is_alike(one: Statistics, other: Statistics) -> bool:
    """Return whether both normalize images in the same way, as far as files round numbers."""
    pairs = zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True)
    return all(math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=_ROUNDING) for a, b in pairs)

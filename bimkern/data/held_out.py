"""Which images are kept out of training: a share of them, by their names alone.

So two runs on the same images hold out the same, whatever their seeds, and images that are added shift no others.
"""

import hashlib
import os

_DIGEST_BYTES = 8


def is_held_out(file: str, share: float) -> bool:
    """Return whether an image belongs to a share in [0, 1) of all; a larger share holds out the same and more."""
    digest = hashlib.blake2b(os.fsencode(file), digest_size=_DIGEST_BYTES).digest()
    return int.from_bytes(digest) < share * 2 ** (8 * _DIGEST_BYTES)

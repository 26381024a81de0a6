"""Which images are kept out of training: a share of them, by their names alone.

So two runs on the same images hold out the same, whatever their seeds, and images that are added shift no others.
"""

import hashlib
import math
from functools import partial
from operator import methodcaller

import numpy as np
from numpy.typing import NDArray

from bimkern.data.names import Names

_DIGEST_BYTES = 8


def are_held_out(files: Names, share: float) -> NDArray[np.bool_]:
    """Return which images belong to a share in [0, 1) of all, [N]; a larger share holds out the same and more."""
    if share == 0:
        return np.zeros(len(files), dtype=bool)
    digests = map(methodcaller("digest"), map(partial(hashlib.blake2b, digest_size=_DIGEST_BYTES), files.all_encoded()))
    return np.frombuffer(b"".join(digests), dtype=">u8") < np.uint64(math.ceil(share * 2 ** (8 * _DIGEST_BYTES)))

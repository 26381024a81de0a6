"""Philox4x32-10, the counter-based generator of masks, crops, flips and sample order, and the streams they draw from.

Operators only, so the same lines run on numpy arrays and on torch tensors of any device; csrc/core/philox.h is the C++
twin. Words are int64 holding values in [0, 2**32).

Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"; checked against Random123's known answers.
"""

from enum import Enum, unique
from typing import Any

Words = Any  # a numpy array or a torch tensor, int64

WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


@unique
class Stream(Enum):
    """What is drawn, as the second counter word: two kinds of draws never share a word, whatever the seed.

    The numbers are part of every run's randomness and never change. csrc/ops/random_keep.h holds MASK and STEP too.
    """

    MASK = 0  # which tokens stay visible
    CROP = 1
    FLIP = 2
    ORDER = 3  # in which an epoch visits the samples
    REPLACEMENT = 4  # of images that cannot be read
    RECTANGLE = 5  # of a blockwise mask
    STEP = 6  # the key by which the masks of a step are drawn
    AUGMENT = 7  # seeds of a library that changes the pixels of a crop
    ERASE = 8  # likewise, of one that erases rectangles
    MIX = 9  # likewise, of one that mixes the images of a batch
    DROP_PATH = 10  # which residual branches an image skips
    CHOICE = 11  # the key by which a stage draws the masked tokens that it decodes
    DROPOUT = 12  # seeds of layers that drop at random on their own


def philox4x32(c0: Words, c1: Words, c2: Words, c3: Words, key: int) -> tuple[Words, Words, Words, Words]:
    """Return four random words for every counter (c0, c1, c2, c3) under a 64-bit key."""
    key0, key1 = key & WORD, (key >> 32) & WORD
    for _ in range(_ROUNDS):
        # A 32 x 32 bit product wraps in int64, but its 64 bits are right: mask after the arithmetic shift.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & WORD) ^ c1 ^ key0,
            product1 & WORD,
            ((product0 >> 32) & WORD) ^ c3 ^ key1,
            product0 & WORD,
        )
        key0, key1 = (key0 + _KEY_STEPS[0]) & WORD, (key1 + _KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def draw(stream: Stream, counters: Words, ids: Words, seed: int) -> tuple[Words, Words, Words, Words]:
    """Return four random words for every counter and 64-bit id of a stream; counters and ids broadcast."""
    return philox4x32(counters, stream.value, ids & WORD, (ids >> 32) & WORD, seed)

"""Philox4x32-10, the counter-based generator behind masks, crops, flips and sample order.

Operators only, so the same lines run on numpy arrays and on torch tensors of any device; csrc/core/philox.h is the C++
twin. Words are int64 holding values in [0, 2**32).

Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"; checked against Random123's known answers.
"""

from typing import Any

Words = Any  # a numpy array or a torch tensor, int64

WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


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

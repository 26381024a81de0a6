"""The global random generators of Python, NumPy and torch, lent to a library that draws from nothing else.

A program's own numbers stay as they were: every generator gets its state back. While it is lent, no other thread may
draw from it.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bimkern.rng import Stream, draw

Reseed = Callable[[int], None]

_NUMPY: Any = np.random  # its global generator is what libraries draw from, and is not typed
_CPU = torch.device("cpu")


@contextmanager
def lent_generators(stream: Stream, seed: int, device: torch.device = _CPU) -> Iterator[Reseed]:
    """Lend the global generators; yield a function of an id, which seeds them for what is drawn next.

    Args:
        stream: what is drawn.
        seed: of the run.
        device: whose torch generator is lent too, besides the CPU's.
    """
    python, gaussian, bits = random.getstate(), _NUMPY.get_state(legacy=False), _NUMPY.get_bit_generator()
    generators = [torch.default_generator, *_of_gpu(device)]
    states = [generator.get_state() for generator in generators]

    def reseed(draw_id: int) -> None:
        first, second, third, fourth = draw(stream, 0, draw_id, seed)  # Python's integers do not wrap
        random.seed(first << 32 | second)
        _NUMPY.seed(third)
        for generator in generators:
            generator.manual_seed(fourth)

    try:
        _NUMPY.set_bit_generator(np.random.MT19937())  # NumPy seeds no other kind, which a program may have set
        yield reseed
    finally:
        random.setstate(python)
        _NUMPY.set_bit_generator(bits)
        _NUMPY.set_state(gaussian)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _of_gpu(device: torch.device) -> list[torch.Generator]:
    if device.type != "cuda":
        return []
    torch.cuda.init()
    return [torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]]

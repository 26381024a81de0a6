"""Weights of a whole network of which a part is trained: the others, drawn at random for an export."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor

_SEED = 0


class RandomWeights(Mapping[str, Tensor]):
    """Some weights of a new network, which is built when the first of them is read; equal in every export."""

    def __init__(self, names: frozenset[str], draw: Callable[[], Mapping[str, Tensor]]) -> None:
        """Take their names, and a function that builds the network and returns all its weights."""
        self._names, self._draw = names, draw

    @cached_property
    def _weights(self) -> Mapping[str, Tensor]:
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(_SEED)
            return self._draw()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

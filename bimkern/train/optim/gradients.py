"""Gradients summed over the ranks, in buckets: what is a bucket ahead arrives while the next one is prepared."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from bimkern.distributed import Ranks, Work

_BUCKET_BYTES = 25 * 2**20  # as DistributedDataParallel has it


class GradientSum(Protocol):
    """Sums the gradients of some parameters over the ranks."""

    def begin(self) -> bool:
        """Begin to sum the gradients there are; return whether finish() has to be called."""

    def finish(self) -> None:
        """Wait for the sums, and put them in the place of the gradients."""


class OwnGradients:
    """The gradients of one process, which are the sums."""

    def begin(self) -> bool:
        return False

    def finish(self) -> None:
        pass


class BucketedSum:
    """Sums over several ranks, copied to memory that is kept for the run: meanwhile the gradients are freed.

    Every rank has gradients of the same parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self._parameters, self._ranks = list(reversed(parameters)), ranks  # as backward comes to them
        self._live: list[nn.Parameter] = []
        self._flat: Tensor | None = None
        self._places: list[Tensor] = []  # of every live gradient
        self._buckets: list[Tensor] = []
        self._works: list[Work] = []

    def begin(self) -> bool:
        grads = {parameter: parameter.grad for parameter in self._parameters if parameter.grad is not None}
        live = list(grads)
        if [*map(id, live)] != [*map(id, self._live)]:
            self._lay_out(live)
        torch._foreach_copy_(self._places, list(grads.values()))
        for parameter in live:
            parameter.grad = None
        self._works = [self._ranks.begin_sum(bucket) for bucket in self._buckets]
        return True

    def finish(self) -> None:
        for work in self._works:
            work.wait()
        self._works = []
        for parameter, place in zip(self._live, self._places, strict=True):
            parameter.grad = place

    def _lay_out(self, live: list[nn.Parameter]) -> None:
        """Assign memory to the gradients of some parameters, and cut it into buckets."""
        size = sum(parameter.numel() for parameter in live)
        if self._flat is None or len(self._flat) < size:
            self._flat = torch.empty(size, dtype=live[0].dtype, device=live[0].device)
        self._live, self._places, self._buckets = live, [], []
        first = end = 0
        for parameter in live:
            self._places.append(self._flat[end : end + parameter.numel()].view_as(parameter))
            end += parameter.numel()
            if (end - first) * self._flat.itemsize >= _BUCKET_BYTES:
                self._buckets.append(self._flat[first:end])
                first = end
        if end > first:
            self._buckets.append(self._flat[first:end])

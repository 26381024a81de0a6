"""Gradients summed over the ranks, bucket by bucket, during the backward pass and whatever follows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bimkern.distributed.ranks import Ranks
from bimkern.distributed.transfers import BUCKET_BYTES, Traffic, Transfer


class GradientReducer(Protocol):
    """Sums the gradients of some parameters over the ranks, once a step."""

    def renew(self) -> None:
        """Expect gradients of other parameters than before."""

    def ahead(self) -> None:
        """Sum gradients as they come: the backward pass that follows is the step's last."""

    def begin(self) -> bool:
        """Begin to sum the gradients there are, and free them; return whether finish() has to be called."""

    def finish(self) -> None:
        """Wait for the sums, and put them in the place of the gradients."""

    def give_up(self) -> None:
        """Begin as the other ranks do in a step that this one cannot finish: the sums are of no use."""

    def traffic(self) -> Traffic:
        """Return the time that sums took since this was last called."""


class OwnGradients:
    """The gradients of one process, which are the sums."""

    def renew(self) -> None:
        pass

    def ahead(self) -> None:
        pass

    def begin(self) -> bool:
        return False

    def finish(self) -> None:
        pass

    def give_up(self) -> None:
        pass

    def traffic(self) -> Traffic:
        return Traffic()


@dataclass(eq=False)
class _Bucket:
    parameters: list[nn.Parameter]
    flat: Tensor  # [N], of all of them
    places: list[Tensor]  # of the gradient of each, views of flat
    awaited: int = 0  # gradients that the last backward pass has yet to come to

    def fill(self) -> None:
        """Move the gradients there; one that this rank alone lacks is zero."""
        if any(parameter.grad is None for parameter in self.parameters):
            self.flat.zero_()
        there = [(place, p.grad) for p, place in zip(self.parameters, self.places, strict=True) if p.grad is not None]
        if there:
            torch._foreach_copy_([place for place, _ in there], [grad for _, grad in there])
        for parameter in self.parameters:
            parameter.grad = None


class BucketedReducer:
    """Sums over several ranks, in memory that is kept for the run.

    The first step, and the first after renew(), shows which parameters have gradients, and which of those come in the
    last backward pass. It sums when finish() is called; the steps after it sum every bucket as soon as it is full.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self._parameters, self._ranks = list(reversed(parameters)), ranks  # as backward comes to them
        first = self._parameters[0]
        size = sum(parameter.numel() for parameter in parameters)
        self._flat = torch.empty(size, dtype=first.dtype, device=first.device)
        self._buckets: list[_Bucket] | None = None  # None: a step has to show them
        self._of: dict[nn.Parameter, _Bucket] = {}
        self._late: set[nn.Parameter] = set()  # whose gradients come in the last backward pass
        self._is_last = False
        self._sums: list[Transfer] = []  # of the first buckets
        self._ended: list[Transfer] = []  # since traffic() was last called
        for parameter in self._parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._arrived)

    def renew(self) -> None:
        self._buckets = None
        self._late.clear()

    def ahead(self) -> None:
        self._is_last = True
        for bucket in self._buckets or []:
            bucket.awaited = sum(parameter in self._late for parameter in bucket.parameters)
        self._send()

    def begin(self) -> bool:
        self._is_last = False
        for bucket in self._buckets or []:
            bucket.awaited = 0
        self._send()
        return True

    def finish(self) -> None:
        if self._buckets is None:
            self._lay_out()
            self._send()
        for sent in self._sums:
            sent.wait()
        self._ended += self._sums
        self._sums = []
        for bucket in self._buckets or []:
            for parameter, place in zip(bucket.parameters, bucket.places, strict=True):
                parameter.grad = place

    def give_up(self) -> None:
        if self._buckets is not None:
            self.begin()

    def traffic(self) -> Traffic:
        spent = sum((ended.traffic() for ended in self._ended), Traffic())
        self._ended = []
        return spent

    def _arrived(self, parameter: nn.Parameter) -> None:
        if not self._is_last:
            return
        if self._buckets is None:
            self._late.add(parameter)
        elif parameter in self._late:
            self._of[parameter].awaited -= 1
            self._send()

    def _send(self) -> None:
        """Begin to sum the buckets that are full, in the same order on every rank."""
        for bucket in (self._buckets or [])[len(self._sums) :]:
            if bucket.awaited:
                return
            bucket.fill()
            self._sums.append(self._ranks.begin_all_reduce(bucket.flat))

    def _lay_out(self) -> None:
        """Cut the memory into buckets of the parameters that have a gradient on any rank."""
        found = self._ranks.all_reduce_max([parameter.grad is not None for parameter in self._parameters])
        live = [parameter for parameter, has in zip(self._parameters, found, strict=True) if has]
        self._buckets, self._of = [], {}
        first, parameters, sizes = 0, list[nn.Parameter](), list[int]()
        for i, parameter in enumerate(live):
            parameters.append(parameter)
            sizes.append(parameter.numel())
            if sum(sizes) * self._flat.itemsize < BUCKET_BYTES and i < len(live) - 1:
                continue
            flat = self._flat[first : first + sum(sizes)]
            places = [place.view_as(p) for p, place in zip(parameters, flat.split(sizes), strict=True)]
            self._buckets.append(_Bucket(parameters, flat, places))
            self._of |= dict.fromkeys(parameters, self._buckets[-1])
            first, parameters, sizes = first + sum(sizes), [], []

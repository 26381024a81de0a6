"""Which part of a group's parameters this rank updates: all of them, or a share, which it then sends to the others.

Source: Rajbhandari et al. 2020 (ZeRO), stage 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from bimkern.distributed.ranks import Ranks
from bimkern.distributed.transfers import Traffic, Transfer
from bimkern.train.checkpoint.streamed import Streamed, read

# Elements. Shares and parameters begin where a vector of any kernel may, so that sharing changes no bit.
_ALIGNMENT = 64


Stored = Mapping[str, Tensor | Streamed]


class Share(Protocol):
    """What of every parameter this rank updates."""

    def part(self, parameter: nn.Parameter) -> nn.Parameter | None:
        """Return the part of a parameter, in its own memory; None where other ranks update all of it."""

    def learned(self) -> Sequence[nn.Parameter]:
        """Return what has the gradients that this rank knows, as a whole or in shards: parts have them too."""

    def take_gradients(self) -> None:
        """Give the parts, and what learned() returns, the gradients of their parameters."""

    def norm(self) -> Tensor:
        """Return the norm of the gradients of all parameters, the same on every rank."""

    def send(self) -> None:
        """Begin to send the parts to the other ranks, and to receive theirs."""

    def receive(self) -> None:
        """Wait until the parameters are those of all ranks, or have the current stream of the GPU wait."""

    def traffic(self) -> Traffic:
        """Return the time that this took since it was last asked for."""

    def stored(self, key: str, parameter: nn.Parameter, quantity: str, own: Tensor | None) -> Tensor | Streamed | None:
        """Return what a checkpoint keeps under a key of the optimizer's state, of which this rank's part has its own.

        None: nothing, as of a parameter that never learns. What is streamed is read on rank 0, while the other ranks
        read what it shares the keys of.
        """

    def loaded(self, key: str, parameter: nn.Parameter, quantity: str, tensors: Stored) -> Tensor | None:
        """Return what this rank's part has of a quantity that a checkpoint keeps under a key; rank 0 alone reads it.

        Where a checkpoint has none, that is None, or what the quantity begins with: zeros.
        """


class WholeShare:
    """All parameters."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters

    def part(self, parameter: nn.Parameter) -> nn.Parameter:
        return parameter

    def learned(self) -> Sequence[nn.Parameter]:
        return self._parameters

    def take_gradients(self) -> None:
        pass

    def norm(self) -> Tensor:
        return _norm(self._parameters)

    def send(self) -> None:
        pass

    def receive(self) -> None:
        pass

    def traffic(self) -> Traffic:
        return Traffic()

    def stored(self, key: str, parameter: nn.Parameter, quantity: str, own: Tensor | None) -> Tensor | None:
        return own

    def loaded(self, key: str, parameter: nn.Parameter, quantity: str, tensors: Stored) -> Tensor | None:
        stored = tensors.get(key)
        return None if stored is None else read(stored).to(parameter.device)


@dataclass(frozen=True)
class Piece:
    """Elements [start, stop) of a flattened parameter, which one rank updates."""

    rank: int
    start: int
    stop: int


class EqualShare:
    """The parameters' elements in one piece of memory, cut into as many shares as there are ranks."""

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        """Move the parameters to where shares can be sent in one piece."""
        self._ranks, self._parameters = ranks, parameters
        sizes = [_aligned(parameter.numel()) for parameter in parameters]
        first = parameters[0]
        flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        share = _aligned(-(-len(flat) // ranks.size))
        self._shares = flat.split(share)
        self._pieces: dict[Tensor, list[Piece]] = {}
        self._parts: dict[nn.Parameter, nn.Parameter] = {}
        offset = 0
        for parameter, size in zip(parameters, sizes, strict=True):
            end = offset + parameter.numel()
            memory = flat[offset:end].view_as(parameter)
            parameter.data = memory.copy_(parameter.data)
            cuts = [offset, *range((offset // share + 1) * share, end, share), end]
            pieces = [Piece(a // share, a - offset, b - offset) for a, b in pairwise(cuts)]
            self._pieces[parameter] = pieces
            for piece in pieces:
                if piece.rank == ranks.rank:
                    part = memory.view(-1)[piece.start : piece.stop]
                    self._parts[parameter] = nn.Parameter(part, requires_grad=parameter.requires_grad)
            offset += size
        self._sent: list[Transfer] = []
        self._received: list[Transfer] = []

    def part(self, parameter: nn.Parameter) -> nn.Parameter | None:
        return self._parts.get(parameter)

    def learned(self) -> Sequence[nn.Parameter]:
        return self._parameters

    def norm(self) -> Tensor:
        return _norm(self._parameters)

    def take_gradients(self) -> None:
        for parameter, part in self._parts.items():
            piece = self._own(parameter)
            grad = parameter.grad
            part.grad = None if grad is None else grad.view(-1)[piece.start : piece.stop]

    def send(self) -> None:
        for part in self._parts.values():
            part.grad = None
        self._sent = [self._ranks.begin_broadcast(share, rank) for rank, share in enumerate(self._shares)]

    def receive(self) -> None:
        for copy in self._sent:
            copy.wait()
        self._received += self._sent
        self._sent = []

    def traffic(self) -> Traffic:
        spent = sum((copy.traffic() for copy in self._received), Traffic())
        self._received = []
        return spent

    def stored(self, key: str, parameter: nn.Parameter, quantity: str, own: Tensor | None) -> Streamed | None:
        if not parameter.requires_grad:
            return None
        scalar = quantity == "step"
        shape = torch.Size() if scalar else parameter.shape

        def collect() -> Tensor:
            whole = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
            if self._ranks.rank == 0:
                self._ranks.broadcast_object(key)
            for place, rank in self._places(parameter, whole):
                if rank == self._ranks.rank:
                    place.copy_(torch.zeros_like(place) if own is None else own.view_as(place))
                if rank:
                    self._ranks.move(place, rank, 0)
            return whole

        return Streamed(shape, parameter.dtype, collect, live=True)

    def loaded(self, key: str, parameter: nn.Parameter, quantity: str, tensors: Stored) -> Tensor | None:
        if not parameter.requires_grad:
            return None
        scalar, part = quantity == "step", self.part(parameter)
        own = None if part is None else torch.empty(() if scalar else part.shape, dtype=part.dtype, device=part.device)
        if self._ranks.rank:
            if own is not None:
                self._ranks.move(own, 0, self._ranks.rank)
            return own
        stored = tensors.get(key)
        empty = () if scalar else parameter.shape
        whole = torch.zeros(empty) if stored is None else read(stored)
        whole = whole.to(parameter.device, parameter.dtype)
        for place, rank in self._places(parameter, whole):
            if rank:
                self._ranks.move(place, 0, rank)
            elif own is not None:
                own.copy_(place.view_as(own))
        return own

    def _places(self, parameter: nn.Parameter, whole: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Yield what each rank has of a quantity, whose shape is that of the parameter, or no shape at all."""
        for piece in self._pieces[parameter]:
            yield whole.view(-1)[piece.start : piece.stop] if whole.dim() else whole, piece.rank

    def _own(self, parameter: nn.Parameter) -> Piece:
        return next(piece for piece in self._pieces[parameter] if piece.rank == self._ranks.rank)


def is_sharded(parameter: nn.Parameter) -> bool:
    """Return whether torch shards a parameter, and sums its gradients over the ranks."""
    return hasattr(parameter, "device_mesh")  # a DTensor, whose class takes seconds to import


def _norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT

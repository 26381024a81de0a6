"""The share of a group of which torch shards some layers: their parameters are updated where they lie.

Source: Zhao et al. 2023 (PyTorch FSDP); Rajbhandari et al. 2020 (ZeRO), stage 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bimkern.distributed.ranks import Ranks
from bimkern.distributed.transfers import Traffic
from bimkern.train.checkpoint.streamed import Streamed, read
from bimkern.train.sharding import sharded_tensors
from bimkern.train.sharding.share import Share, Stored, is_sharded


class LayerShare:
    """A shard of every parameter that is sharded, and what another share has of the rest."""

    def __init__(self, layers: Sequence[nn.Parameter], rest: Share, ranks: Ranks) -> None:
        """Take the parameters that are sharded, which are DTensors, and the share of all others."""
        self._rest, self._ranks = rest, ranks
        self._shards: dict[nn.Parameter, nn.Parameter] = {}  # none is empty
        self._device = layers[0].device
        for parameter in layers:
            shard = _local(parameter)
            if shard.numel():
                self._shards[parameter] = nn.Parameter(shard, requires_grad=parameter.requires_grad)

    def part(self, parameter: nn.Parameter) -> nn.Parameter | None:
        return self._shards.get(parameter) if is_sharded(parameter) else self._rest.part(parameter)

    def learned(self) -> list[nn.Parameter]:
        return [*self._rest.learned(), *self._shards.values()]

    def take_gradients(self) -> None:
        self._rest.take_gradients()
        for parameter, shard in self._shards.items():
            shard.grad = None if parameter.grad is None else _local(parameter.grad)

    def norm(self) -> Tensor:
        own = nn.utils.get_total_norm([s.grad for s in self._shards.values() if s.grad is not None])
        squares = self._ranks.all_reduce(own.to(self._device, torch.float64).square())
        return torch.hypot(self._rest.norm().to(squares), squares.sqrt()).float()

    def send(self) -> None:
        for shard in self._shards.values():
            shard.grad = None
        self._rest.send()

    def receive(self) -> None:
        self._rest.receive()

    def traffic(self) -> Traffic:
        return self._rest.traffic()

    def stored(self, key: str, parameter: nn.Parameter, quantity: str, own: Tensor | None) -> Tensor | Streamed | None:
        if not isinstance(parameter, DTensor):
            return self._rest.stored(key, parameter, quantity, own)
        if own is None:
            if self._ranks.rank == 0:
                return None  # it was never updated
            own = _local(parameter)  # which is empty
        return own if quantity == "step" else sharded_tensors.streamed(key, parameter, own, self._ranks)

    def loaded(self, key: str, parameter: nn.Parameter, quantity: str, tensors: Stored) -> Tensor | None:
        if not isinstance(parameter, DTensor):
            return self._rest.loaded(key, parameter, quantity, tensors)
        if not parameter.requires_grad:
            return None
        given = None
        if self._ranks.rank == 0:
            stored = tensors.get(key)
            given = torch.zeros(() if quantity == "step" else parameter.shape) if stored is None else read(stored)
        if quantity == "step":
            step = torch.empty((), device=self._device) if given is None else given.to(self._device)
            self._ranks.broadcast(step)
            return step
        shard = torch.empty_like(_local(parameter))
        sharded_tensors.share_out(parameter, given, shard)
        return shard


@torch.no_grad()
def _local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, in its own memory."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()

"""Transfers of sharded layers, which torch begins: the time that they take, and the error of a rank that is lost."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from bimkern.distributed.transfers import Traffic, Transfer, finished

# The names before and since torch 2.13.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class LayerTransfers:
    """The transfers of some layers since they were last asked for."""

    def __init__(self) -> None:
        self.ended: list[Transfer] = []

    def observe(self, layer: FSDPModule) -> None:
        """Note the transfers of a layer from now on."""
        gather: Any = _Gather(self)
        scatter: Any = _ReduceScatter(self)
        layer.set_custom_all_gather(gather)
        layer.set_custom_reduce_scatter(scatter)

    def traffic(self) -> Traffic:
        spent = sum((ended.traffic() for ended in self.ended), Traffic())
        self.ended = []
        return spent


class _Transfer:
    def __init__(self, transfers: LayerTransfers) -> None:
        self._transfers = transfers

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def _finish(self, tensor: Tensor, begin: Callable[[], Any]) -> None:
        self._transfers.ended.append(finished(tensor, begin))


class _Gather(_Transfer):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        given = (output_tensor, input_tensor, group)
        self._finish(output_tensor, lambda: _all_gather(*given, async_op=True))


class _ReduceScatter(_Transfer):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        given = (output_tensor, input_tensor, op, group)
        self._finish(output_tensor, lambda: _reduce_scatter(*given, async_op=True))

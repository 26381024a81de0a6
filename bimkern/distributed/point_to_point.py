"""Messages from one rank to another; those of a pair arrive in the order in which they are sent."""

import time
from typing import Any

import torch.distributed as dist
from torch import Tensor

from bimkern.distributed.ranks import Group
from bimkern.distributed.transfers import lost


class Message:
    """A tensor that is on its way: until wait() returns, it may not be touched."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self) -> float:
        """Wait until it has left or arrived, or have the current stream of the GPU wait; return the seconds."""
        begin = time.perf_counter()
        with lost():
            self._work.wait()
        return time.perf_counter() - begin


class Lines:
    """The connections of a rank with each of the others, for contiguous tensors."""

    def __init__(self, ranks: Group, *, own: bool) -> None:
        """Use the connections that gradients take, or, for tensors of the host, own ones, which any thread may use.

        Every rank has to call this at the same time.
        """
        self._group = dist.new_group(backend="gloo", timeout=ranks.timeout) if own else None

    def begin_send(self, tensor: Tensor, rank: int) -> Message:
        with lost():
            return Message(dist.isend(tensor, rank, group=self._group))

    def begin_receive(self, tensor: Tensor, rank: int) -> Message:
        with lost():
            return Message(dist.irecv(tensor, rank, group=self._group))

    def send(self, tensor: Tensor, rank: int) -> None:
        self.begin_send(tensor, rank).wait()

    def receive(self, tensor: Tensor, rank: int) -> Tensor:
        """Fill a tensor with what a rank sends, and return it."""
        self.begin_receive(tensor, rank).wait()
        return tensor

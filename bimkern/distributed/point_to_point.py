"""Messages from one rank to another; those of a pair arrive in the order in which they are sent."""

import torch.distributed as dist
from torch import Tensor

from bimkern.distributed.ranks import PATIENCE, Group
from bimkern.distributed.transfers import Transfer, message


class Lines:
    """The connections of a rank with each of the others, for contiguous tensors."""

    def __init__(self, ranks: Group, *, own: bool, patient: bool = False) -> None:
        """Use the connections that gradients take, or, for tensors of the host, own ones, which any thread may use.

        Every rank has to call this at the same time. Of own ones that are patient, only the end of a rank is noticed.
        """
        self._group = dist.new_group(backend="gloo", timeout=ranks.timeout) if own else None
        self._timeout = PATIENCE if patient else None

    def begin_send(self, tensor: Tensor, rank: int) -> Transfer:
        return message(tensor, lambda: dist.isend(tensor, rank, group=self._group), self._timeout)

    def begin_receive(self, tensor: Tensor, rank: int) -> Transfer:
        return message(tensor, lambda: dist.irecv(tensor, rank, group=self._group), self._timeout)

    def send(self, tensor: Tensor, rank: int) -> None:
        self.begin_send(tensor, rank).wait()

    def receive(self, tensor: Tensor, rank: int) -> Tensor:
        """Fill a tensor with what a rank sends, and return it."""
        self.begin_receive(tensor, rank).wait()
        return tensor

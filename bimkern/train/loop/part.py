"""The part of a network that a process has: here all of it."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from bimkern.mim.flow import Flow
from bimkern.mim.model import Method
from bimkern.train.checkpoint.streamed import Streamed, read_all

N = TypeVar("N", bound=nn.Module)


class NetworkPart(Protocol[N]):
    """What a task asks of the part of its network that this process trains."""

    def flow(self, method: Method) -> Flow:
        """Return what runs the steps of the part."""

    def built(self, build: Callable[[], N]) -> N:
        """Return a network that a function builds at random; keep() has to follow, and gives it its last values."""

    def keep(self, model: N, device: torch.device) -> None:
        """Free what other processes have of a network, and move the rest from the host to the device."""

    def state(self, model: N) -> dict[str, Tensor | Streamed]:
        """Return what state_dict() has of the part."""

    def load_state(self, model: N, tensors: Mapping[str, Tensor | Streamed]) -> None:
        """Take over what state() gave.

        Raises:
            KeyError, RuntimeError: it is that of another network.
        """

    def everywhere(self, model: N) -> N:
        """Return the whole network, for evaluation by all processes at the same time."""

    def complete(self, model: N) -> None:
        """Give the network to every process as a whole, after the last step."""


class WholeNetwork:
    def flow(self, method: Method) -> Flow:
        return method.flow

    def built(self, build: Callable[[], N]) -> N:
        return build()

    def keep(self, model: nn.Module, device: torch.device) -> None:
        model.to(device)

    def state(self, model: nn.Module) -> dict[str, Tensor | Streamed]:
        return {**model.state_dict()}

    def load_state(self, model: nn.Module, tensors: Mapping[str, Tensor | Streamed]) -> None:
        model.load_state_dict(read_all(tensors))

    def everywhere(self, model: N) -> N:
        return model

    def complete(self, model: nn.Module) -> None:
        pass


WHOLE = WholeNetwork()

"""The part of a network that a process has: here all of it."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from bimkern.mim.flow import Flow
from bimkern.mim.model import MIM, Method
from bimkern.train.checkpoint.streamed import Streamed, read_all


class NetworkPart(Protocol):
    """What a task asks of the part of its network that this process trains."""

    def flow(self, method: Method) -> Flow:
        """Return what runs the steps of the part."""

    def keep(self, model: MIM, device: torch.device) -> None:
        """Free what other processes have of a network, and move the rest from the host to the device."""

    def state(self, model: MIM) -> dict[str, Tensor | Streamed]:
        """Return what state_dict() has of the part."""

    def load_state(self, model: MIM, tensors: Mapping[str, Tensor | Streamed]) -> None:
        """Take over what state() gave.

        Raises:
            KeyError, RuntimeError: it is that of another network.
        """

    def everywhere(self, model: MIM) -> MIM:
        """Return the whole network, for evaluation by all processes at the same time."""

    def complete(self, model: MIM) -> None:
        """Give the network to every process as a whole, after the last step."""


class WholeNetwork:
    def flow(self, method: Method) -> Flow:
        return method.flow

    def keep(self, model: MIM, device: torch.device) -> None:
        model.to(device)

    def state(self, model: MIM) -> dict[str, Tensor | Streamed]:
        return {**model.state_dict()}

    def load_state(self, model: MIM, tensors: Mapping[str, Tensor | Streamed]) -> None:
        model.load_state_dict(read_all(tensors))

    def everywhere(self, model: MIM) -> MIM:
        return model

    def complete(self, model: MIM) -> None:
        pass


WHOLE = WholeNetwork()

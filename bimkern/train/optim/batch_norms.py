"""Statistics of batch norms, which no update makes: what is not finite of a step's is dropped, as its update is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class FiniteStatistics:
    """The running means and variances of a network's batch norms, which evaluation and exports use.

    A single batch whose activations overflow would make them NaN for good.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take a network, on its device."""
        self._norms: list[Any] = [module for module in model.modules() if getattr(module, "track_running_stats", False)]
        self._before = [tensor.clone() for tensor in self._statistics()]  # once: a step is to allocate nothing for them

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Run a step in the context; where it leaves statistics that are not finite, they are those from before it."""
        if not self._norms:
            yield
            return
        torch._foreach_copy_(self._before, self._statistics())
        yield
        for now, before in zip(self._statistics(), self._before, strict=True):
            now.copy_(torch.where(now.isfinite(), now, before))

    def _statistics(self) -> list[Tensor]:
        return [tensor for norm in self._norms for tensor in (norm.running_mean, norm.running_var)]

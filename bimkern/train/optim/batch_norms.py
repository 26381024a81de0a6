"""Statistics of batch norms, which no update makes: what is not finite of a step's is dropped, as its update is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bimkern.models.running_statistics import named_counting


class FiniteStatistics:
    """The running means and variances of a network's batch norms, which evaluation and exports use.

    A single batch whose activations overflow would make them NaN for good.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take a network, on its device."""
        self._norms = [norm for _, norm in named_counting(model)]
        statistics = self._statistics()
        # Made once, so that it is none of a step's activations, and in one tensor, since norms are many and small.
        self._before = torch.cat(statistics) if statistics else torch.empty(0)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Run a step in the context; where it leaves statistics that are not finite, they are those from before it."""
        if not self._norms:
            yield
            return
        torch.cat(self._statistics(), out=self._before)
        yield
        statistics = self._statistics()
        now = torch.cat(statistics)
        finite = torch.where(now.isfinite(), now, self._before).split([len(tensor) for tensor in statistics])
        torch._foreach_copy_(statistics, finite)

    def _statistics(self) -> list[Tensor]:
        return [tensor for norm in self._norms for tensor in (norm.running_mean, norm.running_var)]

"""A network that no rank holds, for evaluation: every rank asks for the same, and the one with the stage computes it.

Shapes: B images, R prefix tokens, T tokens, D width, M cells, P values of a cell.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bimkern.distributed.ranks import Ranks
from bimkern.mim.masking.view import StageView
from bimkern.mim.model import MIM
from bimkern.mim.targets import StageTarget


class StagesEverywhere(MIM):
    """The network of all ranks: what a stage computes is sent from its rank to the others."""

    def __init__(self, model: MIM, ranks: Ranks) -> None:
        torch.nn.Module.__init__(self)
        self.network, self.method, self.teacher, self._ranks = model, model.method, model.teacher, ranks

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.network, name)

    def encode(self, stage: int, inputs: Tensor, view: StageView, frozen_groups: int = 0) -> Tensor:
        return self._from(stage, lambda: self.network.encode(stage, inputs, view, frozen_groups))

    def predict(self, stage: int, tokens: Tensor, view: StageView) -> Tensor:
        return self._from(stage, lambda: self.network.predict(stage, tokens, view))

    def loss(
        self, stage: int, tokens: Tensor, images: Tensor, view: StageView, target: StageTarget, denominator: Tensor
    ) -> Tensor:
        return self._from(stage, lambda: self.network.loss(stage, tokens, images, view, target, denominator))

    def _from(self, stage: int, compute: Callable[[], Tensor]) -> Tensor:
        """Compute something on one rank, and return it on all."""
        own = compute().contiguous() if stage == self._ranks.rank else None
        about = [] if own is None else [[*own.shape], str(own.dtype).removeprefix("torch.")]
        shape, dtype = self._ranks.all_gather_object(about)[stage]
        if own is None:
            own = torch.empty(shape, dtype=getattr(torch, dtype), device=self.network.mean.device)
        self._ranks.broadcast(own, source=stage)
        return own

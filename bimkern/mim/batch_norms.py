"""Batch norms of an encoder: frozen ones learn no statistics any more, and no layer that runs twice counts twice.

Source: Brock et al. 2017 (FreezeOut), whose program puts what it freezes in evaluation mode, as that of ViTFreeze does.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

from bimkern.models.running_statistics import named_counting


class BatchNorms:
    """Those of an encoder, which may have none."""

    def __init__(self, encoder: Any) -> None:
        self._layer_group = encoder.config.layer_group
        self._named = named_counting(encoder)
        self._frozen: list[Any] = []

    def freeze(self, frozen_groups: int, *, training: bool) -> None:
        """Put those of the first so many layer groups in evaluation mode, and back what else was frozen before."""
        for norm in self._frozen:
            norm.train(training)
        self._frozen = [norm for number, norm in self._numbered if number < frozen_groups] if frozen_groups else []
        for norm in self._frozen:
            norm.eval()

    @cached_property
    def _numbered(self) -> list[tuple[int, Any]]:
        return [(self._layer_group(f"{name}.running_mean"), norm) for name, norm in self._named]

    def uncounted(self) -> AbstractContextManager[None]:
        """Let all normalize as they do outside of the context, and count nothing."""
        return self._uncounted() if self._named else nullcontext()

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        norms = [norm for _, norm in self._named]
        kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:  # they stay in use: torch wants the same tensors kept for backward in both runs
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, (momentum, count) in zip(norms, kept, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, count

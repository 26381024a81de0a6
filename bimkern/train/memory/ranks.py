"""What the ranks of a run need each: memory, and bytes on the wire in a step.

Shapes: B images, T tokens of a stage, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bimkern.data.step_layout import Segment
from bimkern.image_size import ImageSize
from bimkern.train.config.run import Config
from bimkern.train.config.stage import StageConfig
from bimkern.train.memory.budget import MemoryEstimator
from bimkern.train.memory.estimate import MemoryEstimate, without_values

QUEUE = 4  # micro-batches on their way between two ranks of a pipeline, before the first of them waits


@dataclass(frozen=True, kw_only=True)
class RankEstimate:
    """The needs of a rank, in bytes."""

    name: str
    memory: MemoryEstimate
    buffers: int  # for gradients that are summed, or for tokens that are sent
    sent: int  # in a step
    exposed: int  # of these, what the rank waits for however long it computes meanwhile

    @property
    def peak(self) -> int:
        return self.memory.peak + self.buffers


def of_stages(config: Config, segment: Segment, estimator: MemoryEstimator) -> list[RankEstimate]:
    """Estimate the ranks of a pipeline: rank k has stage k."""
    tokens = [*_tokens(config, segment.image_size), 0]  # bytes that a stage sends for an image
    return [
        RankEstimate(
            name=f"rank {stage}",
            memory=estimator.estimate(StageConfig.of(config, stage), segment),
            buffers=QUEUE * segment.micro_batch * (tokens[stage] + (tokens[stage - 1] if stage else 0)),
            sent=segment.batch_size * tokens[stage],
            exposed=0,  # once the queue is full
        )
        for stage in range(len(config.method.taps))
    ]


def _tokens(config: Config, image_size: ImageSize) -> Iterator[int]:
    """Yield the bytes of the tokens that every stage but the last puts out for an image."""
    with FakeTensorMode(), torch.no_grad():
        model: Any = without_values(config).model
        tokens = torch.empty(1, config.channels, *image_size, dtype=torch.uint8)
        views = model.views(tokens, torch.empty(1, dtype=torch.int64), config.run.seed)
        for stage, view in enumerate(views[:-1]):
            tokens = model.encode(stage, tokens, view)
            yield tokens.nbytes

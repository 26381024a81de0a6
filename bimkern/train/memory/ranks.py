"""What the ranks of a run need each: memory, and bytes on the wire in a step.

Shapes: B images, T tokens of a stage, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bimkern.data.step_layout import Segment
from bimkern.train.config.run import Config, ConfigError
from bimkern.train.config.stage import StageConfig
from bimkern.train.memory.budget import MemoryEstimator
from bimkern.train.memory.estimate import MemoryEstimate
from bimkern.train.memory.rehearsal import rehearsal_of

QUEUE = 4  # micro-batches on their way between two ranks of a pipeline, before the first of them waits


@dataclass(frozen=True, kw_only=True)
class RankEstimate:
    """The needs of a rank, in bytes."""

    name: str
    memory: MemoryEstimate
    buffers: int  # for gradients that are summed, or for tokens that are sent
    sent: int  # in a step

    @property
    def peak(self) -> int:
        return self.memory.peak + self.buffers


def of_images(config: Config, segment: Segment, device: str, num_ranks: int) -> list[RankEstimate]:
    """Estimate ranks that share the images of every step: the one with most of them, as all others need no more.

    Raises:
        ConfigError: there are fewer images.
    """
    if num_ranks > segment.batch_size:
        raise ConfigError(
            f"--ranks {num_ranks}: steps of {segment.batch_size} images cannot be shared by so many; choose fewer"
        )
    largest = replace(segment, batch_size=-(-segment.batch_size // num_ranks))
    largest = replace(largest, micro_batch=min(segment.micro_batch, largest.batch_size))
    memory = MemoryEstimator(device).estimate(config, largest)
    with FakeTensorMode():
        gradients = sum(p.nbytes for p in rehearsal_of(config).model.parameters() if p.requires_grad)
    name = "every rank" if segment.batch_size % num_ranks == 0 else "a rank with most images"
    sent = 2 * (num_ranks - 1) * gradients // num_ranks  # a ring, which reduces and then gathers
    return [RankEstimate(name=name, memory=memory, buffers=gradients, sent=sent)]


def of_stages(config: Config, segment: Segment, device: str) -> list[RankEstimate]:
    """Estimate the ranks of a pipeline: rank k has stage k."""
    tokens = [*_tokens(config, segment.image_size), 0]  # bytes that a stage sends for an image
    return [
        RankEstimate(
            name=f"rank {stage}",
            memory=MemoryEstimator(device).estimate(StageConfig.of(config, stage), segment),
            buffers=QUEUE * segment.micro_batch * (tokens[stage] + (tokens[stage - 1] if stage else 0)),
            sent=segment.batch_size * tokens[stage],
        )
        for stage in range(len(config.method.taps))
    ]


def _tokens(config: Config, side: int) -> Iterator[int]:
    """Yield the bytes of the tokens that every stage but the last puts out for an image."""
    with FakeTensorMode(), torch.no_grad():
        model: Any = rehearsal_of(config).model
        tokens = torch.empty(1, config.channels, side, side, dtype=torch.uint8)
        views = model.views(tokens, torch.empty(1, dtype=torch.int64), config.run.seed)
        for stage, view in enumerate(views[:-1]):
            tokens = model.encode(stage, tokens, view)
            yield tokens.nbytes

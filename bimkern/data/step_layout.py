"""The step layout of a run: the image size and the batch of every step, and its position in the stream of images.

All of it follows from the number of a step, so a resumed run needs nothing but the number of steps done. A recipe gives
shares and factors, so that --epochs, --steps and --batch-size scale its phases alike.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from bimkern.image_size import ImageSize


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive steps of one image size and batch, from first_step up to where the next segment begins."""

    image_size: ImageSize  # of the crops
    batch_size: int  # images of a step
    micro_batch: int  # of them that go through the network at a time
    first_step: int = 0
    first_image: int = 0  # its position in the stream of images
    first_index: int = 0  # of its micro-batches, among all
    rank: int = 0  # of the process whose micro-batches these are
    num_ranks: int = 1  # processes that share a step

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", ImageSize.read(self.image_size))

    @property
    def share(self) -> range:
        """Return which images of a step this rank takes: as many as any other, or one more."""
        first, end = (self.batch_size * rank // self.num_ranks for rank in (self.rank, self.rank + 1))
        return range(first, end)

    @property
    def per_step(self) -> int:
        """Return the micro-batches of a step."""
        return -(-len(self.share) // self.micro_batch)

    def passes(self, slices: int) -> list[int]:
        """Return in how many parts each micro-batch of a step goes through a head that decodes so many slices."""
        sizes = [len(self.share[first:][: self.micro_batch]) for first in range(0, len(self.share), self.micro_batch)]
        return [-(-size // -(-size // slices)) for size in sizes]

    def image(self, step: int) -> int:
        return self.first_image + (step - self.first_step) * self.batch_size

    def index(self, step: int) -> int:
        return self.first_index + (step - self.first_step) * self.per_step


@dataclass(frozen=True)
class StepLayout:
    """Segments without a gap between them, from step 0 on."""

    segments: tuple[Segment, ...]
    num_steps: int

    @classmethod
    def uniform(cls, *, image_size: ImageSize, batch_size: int, micro_batch: int, num_steps: int = 1) -> "StepLayout":
        """Return a layout whose steps are all alike; the position of a step does not depend on how many there are."""
        segment = Segment(image_size=image_size, batch_size=batch_size, micro_batch=micro_batch)
        return cls((segment,), num_steps)

    @classmethod
    def one_epoch(cls, *, image_size: ImageSize, batch_size: int, num_images: int) -> "StepLayout":
        """Return a layout that shows every image once; the last step has what is left."""
        full, left = divmod(num_images, batch_size)
        kinds = [(batch_size, full), (left, 1)]
        segments, first, image = list[Segment](), 0, 0
        for size, steps in ((size, steps) for size, steps in kinds if size and steps):
            begins = {"first_step": first, "first_image": image, "first_index": first}
            segments.append(Segment(image_size=image_size, batch_size=size, micro_batch=size, **begins))
            first, image = first + steps, image + steps * size
        return cls(tuple(segments), first)

    def of_rank(self, rank: int, num_ranks: int) -> "StepLayout":
        """Return the layout of one of several processes that share every step.

        Raises:
            ValueError: a step has fewer images than there are processes.
        """
        segments, index = list[Segment](), 0
        for segment, length in zip(self.segments, self.lengths(), strict=True):
            if segment.batch_size < num_ranks:
                raise ValueError(f"steps of {segment.batch_size} images cannot be shared by {num_ranks} ranks")
            mine = replace(segment, first_index=index, rank=rank, num_ranks=num_ranks)
            mine = replace(mine, micro_batch=min(segment.micro_batch, len(mine.share)))
            segments.append(mine)
            index += length * mine.per_step
        return StepLayout(tuple(segments), self.num_steps)

    def at(self, step: int) -> Segment:
        """Return the segment of a step."""
        return self._last(lambda segment: segment.first_step <= step)

    def image(self, step: int) -> int:
        """Return the position in the stream of a step's first image: how many images the steps before have."""
        return self.at(step).image(step)

    def index(self, step: int) -> int:
        """Return the number of a step's first micro-batch: how many the steps before have."""
        return self.at(step).index(step)

    def locate(self, index: int) -> tuple[Segment, int, int]:
        """Return the segment and the step of a micro-batch, and how many of that step come before it."""
        segment = self._last(lambda segment: segment.first_index <= index)
        steps, part = divmod(index - segment.first_index, segment.per_step)
        return segment, segment.first_step + steps, part

    def num_images(self) -> int:
        """Return how many images the run sees."""
        return self.image(self.num_steps)

    def progress(self, step: int) -> float:
        """Return the share of the images that is seen in the middle of a step, from 0."""
        return (self.image(step) + 0.5 * self.at(step).batch_size) / self.num_images()

    def lengths(self) -> list[int]:
        """Return the number of steps of every segment."""
        begins = [segment.first_step for segment in self.segments]
        return [end - begin for begin, end in zip(begins, [*begins[1:], self.num_steps], strict=True)]

    def _last(self, begins_before: Callable[[Segment], bool]) -> Segment:
        return next(segment for segment in reversed(self.segments) if begins_before(segment))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run at one image size.

    Source: Guo et al. 2022 (FastMIM), FastMIM-P: the images grow during a run.
    """

    share: float  # of the images that the run sees
    image_size: ImageSize
    batch_factor: float = 1.0  # times --batch-size; the learning rate follows
    micro_factor: float = 1.0  # times --micro-batch: less for larger images keeps the memory level

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", ImageSize.read(self.image_size, "Phase: image_size"))
        if not 0 < self.share <= 1:
            raise ValueError(f"Phase: share must be in (0, 1], got {self.share}")
        for name in ("batch_factor", "micro_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"Phase: {name} must be above 0 and finite, got {getattr(self, name)}")

    def segment(self, batch_size: int, micro_batch: int) -> Segment:
        """Return what its steps are like, for the batch and micro-batch of the run."""
        batch = max(1, round(batch_size * self.batch_factor))
        at_a_time = max(1, int(micro_batch * self.micro_factor))
        return Segment(image_size=self.image_size, batch_size=batch, micro_batch=min(at_a_time, batch))


def lay_out(
    phases: Sequence[Phase], *, num_images: int, batch_size: int, micro_batch: int, epochs: float, steps: int | None
) -> StepLayout:
    """Lay out phases over epochs of num_images, or over a number of steps where that is given.

    A phase begins at the step nearest to an epoch's first image, unless a phase would then have no epoch; in so short a
    run it begins where the shares say. Every phase has at least one step, so steps must be no fewer than phases.
    """
    kinds = [phase.segment(batch_size, micro_batch) for phase in phases]
    if steps is None:
        total = epochs * num_images
    else:
        total = steps / sum(phase.share / kind.batch_size for phase, kind in zip(phases, kinds, strict=True))
    segments: list[Segment] = []
    done = image = index = 0
    for left, kind, end in zip(reversed(range(len(kinds))), kinds, _ends(phases, total, num_images), strict=True):
        segment = replace(kind, first_step=done, first_image=image, first_index=index)
        length = max(1, round((end - image) / kind.batch_size))
        if steps is not None:
            length = min(length, steps - done - left) if left else steps - done
        segments.append(segment)
        done += length
        image, index = segment.image(done), segment.index(done)
    return StepLayout(tuple(segments), done)


def _ends(phases: Sequence[Phase], total: float, num_images: int) -> list[float]:
    """Return how many images have been seen at the end of every phase."""
    ends = [share * total for share in accumulate(phase.share for phase in phases)]
    ends[-1] = total  # the shares may add up to a little less
    epochs = [round(end / num_images) for end in ends]
    if len({0, *epochs}) <= len(epochs):
        return ends
    return [*(epoch * num_images for epoch in epochs[:-1]), total]

"""Phases: parts of a run that have an image size and a batch of their own, and the steps at which they begin.

A recipe gives shares and factors, so that --epochs, --steps and --batch-size stretch the phases alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from bimkern.data.step_layout import Course, Stretch


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run at one image size.

    Source: Guo et al. 2022 (FastMIM), FastMIM-P: the images grow in the course of a run.
    """

    share: float  # of the images that the run sees
    image_size: int
    batch_factor: float = 1.0  # times --batch-size; the learning rate follows
    micro_factor: float = 1.0  # times --micro-batch: less for larger images keeps the memory level

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"Phase: share must be in (0, 1], got {self.share}")
        for name in ("batch_factor", "micro_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Phase: {name} must be above 0, got {getattr(self, name)}")

    def stretch(self, batch_size: int, micro_batch: int) -> Stretch:
        """Return what its steps are like, for the batch and micro-batch of the run."""
        batch = max(1, round(batch_size * self.batch_factor))
        at_a_time = max(1, int(micro_batch * self.micro_factor))
        return Stretch(image_size=self.image_size, batch_size=batch, micro_batch=min(at_a_time, batch))


@dataclass(frozen=True)
class Timetable:
    """The course of a run, and where it ends."""

    course: Course
    num_steps: int

    def num_images(self) -> int:
        """Return how many images the run sees."""
        return self.course.image(self.num_steps)

    def progress(self, step: int) -> float:
        """Return the share of the images that is seen in the middle of a step, from 0."""
        return (self.course.image(step) + 0.5 * self.course.at(step).batch_size) / self.num_images()

    def lengths(self) -> list[int]:
        """Return how many steps every stretch has."""
        begins = [stretch.first_step for stretch in self.course.stretches]
        return [end - begin for begin, end in zip(begins, [*begins[1:], self.num_steps], strict=True)]


def timetable(
    phases: Sequence[Phase], *, num_images: int, batch_size: int, micro_batch: int, epochs: float, steps: int | None
) -> Timetable:
    """Lay out phases over epochs of num_images, or over a number of steps where that is given.

    A phase begins at the step nearest to an epoch's first image, unless a phase would then have no epoch; in so short a
    run it begins where the shares say. Every phase has at least one step, so steps must be no fewer than phases.
    """
    kinds = [phase.stretch(batch_size, micro_batch) for phase in phases]
    if steps is None:
        total = epochs * num_images
    else:
        total = steps / sum(phase.share / kind.batch_size for phase, kind in zip(phases, kinds, strict=True))
    stretches: list[Stretch] = []
    done = image = index = 0
    for left, kind, end in zip(reversed(range(len(kinds))), kinds, _ends(phases, total, num_images), strict=True):
        stretch = replace(kind, first_step=done, first_image=image, first_index=index)
        length = max(1, round((end - image) / kind.batch_size))
        if steps is not None:
            length = min(length, steps - done - left) if left else steps - done
        stretches.append(stretch)
        done += length
        image, index = stretch.image(done), stretch.index(done)
    return Timetable(Course(tuple(stretches)), done)


def _ends(phases: Sequence[Phase], total: float, num_images: int) -> list[float]:
    """Return how many images have been seen at the end of every phase."""
    ends = [share * total for share in accumulate(phase.share for phase in phases)]
    ends[-1] = total  # the shares may add up to a little less
    epochs = [round(end / num_images) for end in ends]
    if len({0, *epochs}) <= len(epochs):
        return ends
    return [*(epoch * num_images for epoch in epochs[:-1]), total]

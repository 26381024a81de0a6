"""The course of a run: which steps are alike in image size and batch, and where in the images each of them begins.

All of it follows from the number of a step, so a run that is resumed finds its place by the steps that it has done.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Steps in a row that are alike, from first_step up to where the next stretch begins."""

    image_size: int  # side of the crops in pixels
    batch_size: int  # images of a step
    micro_batch: int  # of them that go through the network at a time
    first_step: int = 0
    first_image: int = 0  # its place in the stream of images
    first_index: int = 0  # of its micro-batches, among all

    @property
    def per_step(self) -> int:
        """Return the micro-batches of a step."""
        return -(-self.batch_size // self.micro_batch)

    def image(self, step: int) -> int:
        return self.first_image + (step - self.first_step) * self.batch_size

    def index(self, step: int) -> int:
        return self.first_index + (step - self.first_step) * self.per_step


@dataclass(frozen=True)
class Course:
    """Stretches without a gap between them, from step 0 on; the last one has no end."""

    stretches: tuple[Stretch, ...]

    @classmethod
    def alike(cls, *, image_size: int, batch_size: int, micro_batch: int) -> "Course":
        """Return a course of steps that are all alike."""
        return cls((Stretch(image_size=image_size, batch_size=batch_size, micro_batch=micro_batch),))

    def at(self, step: int) -> Stretch:
        """Return the stretch that a step lies in."""
        return self._last(lambda stretch: stretch.first_step <= step)

    def image(self, step: int) -> int:
        """Return the place in the stream of a step's first image: how many images the steps before have."""
        return self.at(step).image(step)

    def index(self, step: int) -> int:
        """Return the number of a step's first micro-batch: how many the steps before have."""
        return self.at(step).index(step)

    def place(self, index: int) -> tuple[Stretch, int, int]:
        """Return the stretch and the step that a micro-batch lies in, and how many of that step come before it."""
        stretch = self._last(lambda stretch: stretch.first_index <= index)
        steps, part = divmod(index - stretch.first_index, stretch.per_step)
        return stretch, stretch.first_step + steps, part

    def _last(self, begins_before: Callable[[Stretch], bool]) -> Stretch:
        return next(stretch for stretch in reversed(self.stretches) if begins_before(stretch))

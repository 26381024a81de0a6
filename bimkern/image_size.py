"""The size of images in pixels: 224 for squares of so many a side, 160x320 for 160 rows of 320 pixels."""

import re
from typing import NamedTuple, TypeAlias, Union

__all__ = ["IMAGENET_SIZE", "ImageSize", "SizeLike"]

_TEXT = re.compile(r"\s*(\d+)\s*(?:[xX]\s*(\d+)\s*)?")


class ImageSize(NamedTuple):
    """Rows and columns of pixels. As text, and in files, a square is one number."""

    height: int
    width: int

    @classmethod
    def square(cls, side: int) -> "ImageSize":
        return cls(side, side)

    @classmethod
    def read(cls, value: "SizeLike", name: str = "image_size") -> "ImageSize":
        """Return the size that a number, a text such as 160x320, or a pair of numbers says.

        Args:
            value: the number, text or pair.
            name: what it is, for errors.

        Raises:
            ValueError: it says none.
        """
        sides: tuple[object, ...] = (value,)
        if isinstance(value, str):
            match = _TEXT.fullmatch(value)
            sides = tuple(int(side) for side in match.groups() if side) if match else ()
        elif isinstance(value, (tuple, list)):
            sides = tuple(value)
        whole = [side for side in sides if isinstance(side, int) and not isinstance(side, bool)]
        if len(whole) != len(sides) or len(whole) not in (1, 2):
            raise ValueError(
                f"{name} must be the side of a square in pixels, such as 224, or height x width, such as 160x320; "
                f"got {value!r}"
            )
        if min(whole) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
        return cls(whole[0], whole[-1])

    @property
    def is_square(self) -> bool:
        return self.height == self.width

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.height * self.width

    @property
    def saved(self) -> int | str:
        """The size as a value for files: a number for a square, else text."""
        return self.height if self.is_square else str(self)

    @property
    def as_argument(self) -> "int | tuple[int, int]":
        """The size as other programs take it: a number for a square, else a pair."""
        return self.height if self.is_square else (self.height, self.width)

    def is_multiple(self, patch: int) -> bool:
        """Return whether patches of so many pixels a side cover such images without a rest."""
        return not self.height % patch and not self.width % patch

    def __str__(self) -> str:
        return str(self.height) if self.is_square else f"{self.height}x{self.width}"


SizeLike: TypeAlias = Union[ImageSize, int, str, "tuple[int, int]"]
IMAGENET_SIZE = ImageSize.square(224)

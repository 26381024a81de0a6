"""Sources: which images there are, and how their bytes are read.

A sample id is the index of an image in the sorted list of a source, so it means the same on every machine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from bimkern.data.addresses import without_passwords
from bimkern.data.formats import blamed_on_image
from bimkern.errors import BimkernError

UNKNOWN_TIME = -1  # in place of a time of change


class SourceError(BimkernError, ValueError):
    """A source cannot be used; the message says what to change, and no password."""

    def __init__(self, message: str) -> None:
        super().__init__(without_passwords(message))


class Source(Protocol):
    """Named files, each an encoded image: on disk, or inside whatever the source reads. A frozen dataclass.

    It may also have `title`, its name in messages, in place of its paths; `only_images = True`, if whatever it lists is
    an image, whose name need not say so; `dtype`, that of all images, where it is known; `labels(files)`, the label of
    each by its name; `origin(file)`, what tells a file from those of all other sources, if its name does not; and the
    class methods `accepts(place)` and `of(places)`, by which --data finds it (sources/find.py).

    Of a million files, no method should be called for each: files() may return Reasons, `stats(files)` is what stat()
    returns of all, [N, 2] int64 with UNKNOWN_TIME for those that are gone, and `on_disk` whether path() returns one.
    `holds_arrays` says that no image is encoded: DALI then decodes none. `damaged()` returns why some of the files that
    are skipped are, each of which the quarantine file then names. `read_ahead(files)` has the system fetch what is
    opened next; it may do nothing, and raises nothing.
    """

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files and folders that it reads: they name it in messages, and a run must not write into them."""

    @property
    def held_out(self) -> "Source | None":
        """Images to evaluate on that are kept out of training. None: other crops of the same images."""

    def files(self) -> Mapping[str, str | None]:
        """Return why every file is skipped, by its name; None for an image. The name stays when the source moves.

        Raises:
            SourceError: the source cannot be used.
        """

    def stat(self, file: str) -> tuple[int, int]:
        """Return the bytes and the time of change (ns) of a file: while both stay, it is not checked again.

        With UNKNOWN_TIME for the time, the file is checked whenever a run starts.

        Raises:
            OSError, BadImage: it is gone.
        """

    def open(self, file: str) -> BinaryIO:
        """Open a file, to read and seek in it. Loaders call this in processes and threads of their own.

        Raises:
            BadImage, OutOfResources: it, or any file, cannot be read now. So is any other error understood.
        """

    def path(self, file: str) -> Path | None:
        """Return where a file lies on disk, for DALI to read; None where it does not: DALI then gets its bytes."""


def open_in(source: Source, file: str) -> BinaryIO:
    """Open a file of a source.

    Raises:
        BadImage, OutOfResources: it, or any file, cannot be read now.
    """
    with blamed_on_image():
        return source.open(file)


def read_ahead(source: Source, files: Sequence[str]) -> None:
    """Have the system fetch the files of a source that are opened next, if the source can."""
    fetch = getattr(source, "read_ahead", None)
    if fetch is not None:
        fetch(files)


def title(source: Source) -> str:
    """Name a source in messages, without passwords."""
    name: str | None = getattr(source, "title", None)
    return ", ".join(map(str, source.paths)) if name is None else without_passwords(name)

"""Labels: which class every image belongs to, as its source says, or by class folders.

A folder is read as by torchvision's ImageFolder: the folder right below it names the class. A folder that holds `train`
and `val` (or `valid`, `validation` or `test`), each a folder or a list, keeps the second for evaluation.

Shapes: N images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bimkern.data.integers import Int64
from bimkern.data.names import Names
from bimkern.data.source import Source, SourceError, title
from bimkern.data.sources.find import find_source, place_of
from bimkern.data.sources.listed import LISTS
from bimkern.data.sources.remote import RemoteImages

__all__ = ["HasLabels", "Labels", "labeled_images", "read_labels"]

_TRAIN, _HELD_OUT = ("train",), ("val", "valid", "validation", "test")


@runtime_checkable
class HasLabels(Protocol):
    """A source whose images carry labels."""

    def labels(self, files: Sequence[str]) -> Mapping[str, str]:
        """Return the label of every file, in words.

        Raises:
            SourceError: one has none.
        """


@dataclass(frozen=True, eq=False)
class Labels:
    """The class of every file of a source."""

    classes: tuple[str, ...]  # sorted; a label is the index of one
    files: Names
    numbers: Int64  # [N], the label of each

    def of(self, files: Names) -> Int64:
        """Return the labels of some of the files, [N]: of `Images.files`, they are indexed by sample id."""
        indexes = self.files.indexes_of(files)
        assert (indexes >= 0).all()
        return self.numbers[indexes]


def labeled_images(path: Path) -> Source:
    """Return the source that a path names (find_source); where it is a folder of train and val, val is its held_out.

    Raises:
        SourceError: it cannot be used.
    """
    whole = find_source(path)
    train, val = _parts(whole, place_of(path))
    if train is None or val is None:  # train may be a class: of vehicles
        return whole
    held_out: Any = {"held_out": find_source(val)}
    return replace(find_source(train), **held_out)  # type: ignore[type-var]  # a source is a frozen dataclass


def read_labels(source: Source, files: Names, classes: Sequence[str] | None = None) -> Labels:
    """Read the labels of a source that labeled_images returned.

    Args:
        source: of the files.
        files: the images that need a label.
        classes: those of the training images, for images that are held out; None: those that there are.

    Raises:
        SourceError: a file has no label, its label is none of the classes, or there are fewer than two classes.
    """
    numbers: dict[str, int] = {}  # of classes, as they are met
    names = source.labels(files) if isinstance(source, HasLabels) else None
    labels = _class_folders(source, files) if names is None else map(names.__getitem__, files)
    met = np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)
    known = sorted(numbers) if classes is None else list(classes)
    if len(known) < 2:
        raise SourceError(f"{title(source)}: labels must name at least two classes, got {', '.join(known) or 'none'}")
    number_of = {name: i for i, name in enumerate(known)}
    unknown = np.flatnonzero(np.array([name not in number_of for name in numbers], dtype=bool)[met])
    if len(unknown):
        label = list(numbers)[met[unknown[0]]]
        raise SourceError(f"{title(source)}: {files[int(unknown[0])]} has label {label!r}, which no training image has")
    return Labels(tuple(known), files, np.array([number_of[name] for name in numbers], dtype=np.int64)[met])


def _class_folders(source: Source, files: Names) -> Iterator[str]:
    """Yield the first folder in the name of every file."""
    for file in files:
        folder, slash, _ = file.partition("/")
        if not slash:
            raise SourceError(f"{title(source)}: {file} lies in no class folder; put it into one, or give a .csv list")
        yield folder


def _parts(source: Source, place: str) -> tuple[Path | None, Path | None]:
    """Return the folder, or on disk the list, of each part of a data set; None where there is none."""
    below = source.names() if isinstance(source, RemoteImages) else None
    suffixes = ("", *LISTS) if below is None else ("",)  # lists are read on disk alone
    parts: list[Path | None] = []
    for names in (_TRAIN, _HELD_OUT):
        known = (f"{name}{suffix}" for name in names for suffix in suffixes)
        there = (name for name in known if (Path(place, name).exists() if below is None else name in below))
        parts.append(next((Path(place, name) for name in there), None))
    return parts[0], parts[1]

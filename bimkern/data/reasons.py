"""Why files are skipped, by name: of a million files, each reason is an integer.

Shapes: N files.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from bimkern.data.integers import Int64
from bimkern.data.names import Names
from bimkern.data.suffixes import suffixes_of


class Reasons(Mapping[str, str | None]):
    """Why every file of a source is skipped, by its name; None for an image. Sorted by name."""

    def __init__(self, names: Names, codes: Int64, texts: "list[str | None]") -> None:
        """Take names that ascend, and for each of them the index [N] of its reason in `texts`."""
        self.names, self._codes, self._texts = names, codes, texts

    @classmethod
    def of(cls, reasons: Mapping[str, str | None]) -> "Reasons":
        """Return the reasons in a mapping, or this mapping as it is."""
        if isinstance(reasons, Reasons):
            return reasons
        numbers: dict[str | None, int] = {}
        names = sorted(reasons)  # many sources list in order, which sorting keeps at little cost
        codes = [numbers.setdefault(reasons[name], len(numbers)) for name in names]
        return cls(Names.of(names), np.array(codes, dtype=np.int64), list(numbers))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, file: str) -> str | None:
        i = self.names.index_of(file)
        if i is None:
            raise KeyError(file)
        return self._texts[self._codes[i]]

    @property
    def images(self) -> NDArray[np.bool_]:
        """Which of the files are images, [N]."""
        return np.array([text is None for text in self._texts], dtype=bool)[self._codes]

    def where(self, mask: NDArray[np.bool_]) -> "Reasons":
        """Return those of the files for which a mask [N] holds."""
        return Reasons(self.names.where(mask), self._codes[mask], self._texts)

    def skip(self, suffix: str, reason: str) -> "Reasons":
        """Return the same with one more reason, for which images of a suffix are skipped."""
        if suffix.encode() not in self.names.joined.lower():
            return self
        numbers, suffixes = suffixes_of(self.names)
        known = suffixes.index(suffix) if suffix in suffixes else -1
        codes = np.where(self.images & (numbers == known), len(self._texts), self._codes)
        return Reasons(self.names, codes, [*self._texts, reason])

    def without(self, files: Collection[str]) -> "Reasons":
        """Return these but for a few files."""
        found = [i for file in files if (i := self.names.index_of(file)) is not None]
        mask = np.ones(len(self), dtype=bool)
        mask[found] = False
        return self.where(mask) if found else self

    def joined(self, reasons: Mapping[str, str | None]) -> "Reasons":
        """Return these, and those of them that are of other files."""
        new = [file for file in sorted(reasons) if file not in self]
        if not new:
            return self
        texts = {text: code for code, text in enumerate(self._texts)}
        codes = [texts.setdefault(reasons[file], len(texts)) for file in new]
        names, indexes = self.names.inserted(new)
        return Reasons(names, np.insert(self._codes, indexes, codes), list(texts))

    def alike(self) -> dict[tuple[str, str], Names]:
        """Return the files that are skipped by suffix and reason."""
        numbers, suffixes = suffixes_of(self.names)
        kinds, count = numbers * len(self._texts) + self._codes, len(self._texts)
        return {
            (suffixes[kind // count], text): self.names.where(kinds == kind)
            for kind in np.unique(kinds).tolist()
            if (text := self._texts[kind % count]) is not None
        }

    def count(self) -> Counter[str]:
        """Count the files by suffix."""
        numbers, suffixes = suffixes_of(self.names)
        return +Counter(dict(zip(suffixes, np.bincount(numbers, minlength=len(suffixes)).tolist(), strict=True)))


def reasons_by_suffix(
    names: Names, by_suffix: Mapping[str, str | None], of_other: Callable[[str], str | None]
) -> Reasons:
    """Return the reasons for names that ascend.

    Args:
        names: of all files.
        by_suffix: the reason for every suffix that is known.
        of_other: called with the names of other suffixes; returns the reason.
    """
    numbers, suffixes = suffixes_of(names)
    texts: dict[str | None, int] = {}
    code_of = [texts.setdefault(by_suffix[one], len(texts)) if one in by_suffix else -1 for one in suffixes]
    codes = np.array(code_of, dtype=np.int64)[numbers]
    for i in np.flatnonzero(codes < 0).tolist():
        codes[i] = texts.setdefault(of_other(names[i]), len(texts))
    return Reasons(names, codes, list(texts))

"""Names of the images in a packed set: those that they have in their source, as far as shards can hold these.

The numbers of images follow the order of their names, so that names are changed as little as possible.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO

from bimkern.data.formats import ARRAY_SUFFIX, SUFFIXES
from bimkern.data.repack import PackedImage
from bimkern.data.skipped import why_skipped
from bimkern.data.source import SourceError
from bimkern.data.sources.sharded import key_of
from bimkern.data.suffixes import suffix_of

_REPLACED = (*SUFFIXES, ARRAY_SUFFIX)


class PackedNames:
    """The names of files in shards, and which labels need a member of their own."""

    def __init__(self, files: Sequence[str], labels: Mapping[str, str] | None) -> None:
        """Choose a name for every file, but for its suffix.

        Args:
            files: of the source.
            labels: of each, None if there are none.

        Raises:
            SourceError: two would have the same name, or one key with two labels.
        """
        self._whole = {file: _relative(file) for file in files}
        stems = Counter(map(_stem, self._whole.values()))
        self._bases = {file: whole if stems[_stem(whole)] > 1 else _stem(whole) for file, whole in self._whole.items()}
        _refuse_equal(self._bases)
        self._labels = {} if labels is None else self._members(labels)

    def image(self, file: str, packed: PackedImage) -> str:
        """Return the name of an image."""
        if packed.copied:
            whole = self._whole[file]
            return whole if why_skipped(whole, lambda: BytesIO(packed.content)) is None else whole + packed.suffix
        return self._bases[file] + packed.suffix

    def label(self, file: str) -> tuple[str, bytes] | None:
        """Return name and content of the member with the label of a file; None where its folder tells it."""
        return self._labels.get(file)

    def _members(self, labels: Mapping[str, str]) -> dict[str, tuple[str, bytes]]:
        """Return the label members by the first file of each key."""
        first: dict[str, str] = {}
        members = {}
        for file, base in self._bases.items():
            key = key_of(base)
            other = first.setdefault(key, file)
            if labels[other] != labels[file]:
                raise SourceError(
                    f"{other} and {file} have different labels, and one key {key!r} in a shard, which holds one label; "
                    "rename one"
                )
            folder, slash, _ = base.partition("/")
            if other == file and not (slash and folder == labels[file]):
                members[file] = (f"{key}.cls", labels[file].encode())
        return members


def _refuse_equal(bases: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for file, base in bases.items():
        if (other := seen.setdefault(base, file)) != file:
            raise SourceError(f"{other} and {file} would have the same name {base!r} in a shard; rename one")


def _stem(name: str) -> str:
    return name[: -len(suffix)] if (suffix := suffix_of(name)) in _REPLACED else name


def _relative(file: str) -> str:
    """Return a path that stays inside, of parts that do not begin with a dot."""
    parts = (part.lstrip(".") for part in file.split("/"))
    return "/".join(part for part in parts if part)

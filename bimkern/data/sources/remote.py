"""Images at an address: a folder of files that fsspec reads, such as s3://bucket/photos."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from typing import BinaryIO, ClassVar, Self

from bimkern import pieces
from bimkern.data.addresses import is_address
from bimkern.data.formats import BadImage
from bimkern.data.skipped import why_skipped
from bimkern.data.source import Source, SourceError
from bimkern.data.sources.remote_files import RemoteFile, RemoteFiles
from bimkern.data.suffixes import is_dot_file, suffix_of

# Files that hold many images, or list them, and are read only on disk.
_COPIED_FIRST = (".txt", ".csv", ".tsv", ".jsonl", ".npy", ".npz", ".h5", ".hdf5", ".lmdb", ".mdb", ".arrow")
_NAMED_ONE_BY_ONE = (".tar", ".parquet")


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class RemoteImages:
    """The images below an address, by their paths relative to it, with or without class folders."""

    url: str
    held_out: Source | None = None
    paths: ClassVar[tuple[()]] = ()
    on_disk: ClassVar[bool] = False

    @classmethod
    def accepts(cls, place: str) -> bool:
        return is_address(place)

    @classmethod
    def of(cls, places: Sequence[str]) -> Self:
        if len(places) > 1:
            raise SourceError(f"--data takes one folder at an address, got {', '.join(places)}")
        if (suffix := suffix_of(places[0])) in _COPIED_FIRST:
            raise SourceError(f"{places[0]}: {suffix} files are not read at an address; copy it to this machine first")
        return cls(url=places[0].rstrip("/"))

    @property
    def title(self) -> str:
        return self.url

    def names(self) -> set[str]:
        """Return the names of the folders and files right below the address.

        Raises:
            SourceError: it cannot be listed.
        """
        return self._remote.names()

    def files(self) -> Mapping[str, str | None]:
        vars(self).pop("_files", None)
        files = [file for file in self._files if not is_dot_file(file)]
        named = [file for file in files if file.endswith(_NAMED_ONE_BY_ONE)]
        found = self._reasons(file for file in files if not file.endswith(_NAMED_ONE_BY_ONE))
        if named and None not in found.values():
            places = Counter((file[: file.rfind("/") + 1], suffix_of(file)) for file in named)
            folder, suffix = max(places, key=places.__getitem__)
            raise SourceError(
                f"{self.url} holds {suffix} files and no image; name them, as in --data '{self.url}/{folder}*{suffix}'"
            )
        return found | self._reasons(named)

    def stat(self, file: str) -> tuple[int, int]:
        found = self._find(file)
        return 1 if found.size is None else found.size, found.time

    def open(self, file: str) -> BinaryIO:
        return BytesIO(self._remote.whole(self._find(file)))

    def path(self, file: str) -> None:
        return None

    def _reasons(self, files: Iterable[str]) -> dict[str, str | None]:
        return {file: why_skipped(file, partial(self._open_start, file)) for file in files}

    def _find(self, file: str) -> RemoteFile:
        if file not in self._files:
            raise BadImage("no such file at the address")
        return self._files[file]

    def _open_start(self, file: str) -> BinaryIO:
        return BytesIO(self._remote.start(self._find(file)))

    @cached_property
    def _files(self) -> dict[str, RemoteFile]:
        return self._remote.below()

    @cached_property
    def _remote(self) -> RemoteFiles:
        return RemoteFiles(self.url)

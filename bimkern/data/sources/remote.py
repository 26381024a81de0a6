"""Images at an address: a folder of files that fsspec reads, such as s3://bucket/photos, kept in a bounded local cache.

A read that fails, or is shorter than the file, is tried again with growing pauses; then the image is bad.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from io import BytesIO
from typing import Any, BinaryIO, ClassVar, Self, TypeVar

from bimkern import optional, pieces
from bimkern.data.formats import START_BYTES, BadImage, reason_of
from bimkern.data.source import UNKNOWN_TIME, Source, SourceError, why_skipped
from bimkern.data.sources.bounded_cache import BoundedCache
from bimkern.data.sources.per_process import PerProcess
from bimkern.data.suffixes import is_dot_file
from bimkern.files.cache import cache_folder

T = TypeVar("T")

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://.+")
_PAUSES = (0.1, 0.4, 1.6, 6.4)  # seconds between attempts
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)  # which another attempt would not mend
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")  # of a file, as file systems call them
_VERSIONS = ("ETag", "etag", "md5Hash", "sha256", "blob_id")
_CACHE_GB = "BIMKERN_REMOTE_CACHE_GB"


@dataclass(frozen=True)
class _File:
    """A file at an address, as it was listed."""

    path: str  # as the file system calls it
    size: int | None  # bytes, None: unknown
    time: int  # ns, or what else changes with the content; UNKNOWN_TIME


@pieces.register(Source)
@dataclass(frozen=True, kw_only=True)
class RemoteImages:
    """The images below an address, by their paths relative to it, with or without class folders.

    The environment variable BIMKERN_REMOTE_CACHE_GB bounds the cache, which all addresses share: 10 by default.
    """

    url: str
    held_out: Source | None = None
    paths: ClassVar[tuple[()]] = ()
    on_disk: ClassVar[bool] = False

    @classmethod
    def accepts(cls, place: str) -> bool:
        return _ADDRESS.fullmatch(place) is not None

    @classmethod
    def of(cls, places: Sequence[str]) -> Self:
        if len(places) > 1:
            raise SourceError(f"--data takes one address, got {', '.join(places)}")
        return cls(url=places[0].rstrip("/"))

    @property
    def title(self) -> str:
        return self.url

    def files(self) -> Mapping[str, str | None]:
        vars(self).pop("_files", None)
        return {
            file: why_skipped(file, partial(self._open_start, file)) for file in self._files if not is_dot_file(file)
        }

    def stat(self, file: str) -> tuple[int, int]:
        found = self._find(file)
        return 1 if found.size is None else found.size, found.time

    def open(self, file: str) -> BinaryIO:
        return self._kept(file, "", self._read)

    def path(self, file: str) -> None:
        return None

    def _find(self, file: str) -> _File:
        if file not in self._files:
            raise BadImage("no such file at the address")
        return self._files[file]

    def _open_start(self, file: str) -> BinaryIO:
        return self._kept(file, "\nstart", self._read_start)

    def _kept(self, file: str, part: str, read: Callable[[_File], bytes]) -> BinaryIO:
        """Open a file, or a part of it, as the cache has it; read it where that does not."""
        found = self._find(file)
        key = f"{self.url}\n{found}{part}"
        content = self._cache.get(key) if found.time != UNKNOWN_TIME else None
        if content is None:
            try:
                content = _tried_again(lambda: read(found))
            except Exception as error:  # whatever the file system raises
                raise BadImage(f"{found.path} cannot be read ({reason_of(error)})") from error
            if found.time != UNKNOWN_TIME:
                self._cache.put(key, content)
        return BytesIO(content)

    def _read(self, file: _File) -> bytes:
        content: bytes = self._file_system()[0].cat_file(file.path)
        return _whole(content, file.size)

    def _read_start(self, file: _File) -> bytes:
        """Return the first bytes of a file; a server that ignores the range sends all."""
        if file.size == 0:  # which has no range
            return b""
        try:
            start: bytes = self._file_system()[0].cat_file(file.path, start=0, end=START_BYTES)[:START_BYTES]
        except _FINAL:
            raise
        except Exception:  # it may refuse ranges, or the file be empty
            return self._read(file)[:START_BYTES]
        return start if file.size is None else _whole(start, min(file.size, START_BYTES))

    @cached_property
    def _files(self) -> dict[str, _File]:
        try:
            file_system, root = self._file_system()
            found = _tried_again(lambda: _listed(file_system, root))
        except SourceError:
            raise
        except Exception as error:
            reason = "there is none" if isinstance(error, FileNotFoundError) else optional.first_line(error)
            raise SourceError(f"{self.url} cannot be listed ({reason})") from error
        prefix = f"{root.rstrip('/')}/"
        return {
            path.removeprefix(prefix).lstrip("/"): _File(path, info.get("size"), _time_of(info))
            for path, info in found.items()
        }

    @cached_property
    def _file_system(self) -> PerProcess[tuple[Any, str]]:
        return PerProcess(self._connect)

    @cached_property
    def _cache(self) -> BoundedCache:
        text = os.environ.get(_CACHE_GB, "10")
        try:
            limit = int(float(text) * 1e9)
        except ValueError:
            raise SourceError(f"{_CACHE_GB} must be a number, got {text!r}") from None
        return BoundedCache(cache_folder() / "remote-v1", limit)

    def _connect(self) -> tuple[Any, str]:
        """Return the file system, of this process alone, and the path in it.

        Raises:
            SourceError: the package that reads it is missing, or there is none for it.
        """
        try:
            fsspec = optional.load("fsspec")
        except optional.Unusable as reason:
            raise SourceError(f"{self.url} needs fsspec ({reason}); pip install 'bimkern[remote]'") from reason
        try:
            return fsspec.core.url_to_fs(self.url, skip_instance_cache=True)
        except ImportError as error:  # it names the package
            raise SourceError(f"{self.url}: {optional.first_line(error)}") from error
        except Exception as error:
            raise SourceError(f"{self.url} cannot be reached ({optional.first_line(error)})") from error


def _listed(file_system: Any, root: str) -> dict[str, Any]:
    """Return what is known of all files below a folder, by their paths."""
    if "http" in file_system.protocol:  # whose find() leaves out the folders that fail
        folders = file_system.walk(root, detail=True, on_error="raise")
        return {info["name"]: info for _, _, files in folders for info in files.values()}
    found: dict[str, Any] = file_system.find(root, detail=True)
    if not found:
        file_system.ls(root)  # which raises an error where find() does not
    return {path: info for path, info in found.items() if info["type"] == "file"}


def _whole(content: bytes, size: int | None) -> bytes:
    """Return what was read, if it has the size that it must have; None: any."""
    if size is not None and len(content) != size:
        raise EOFError(f"{len(content)} of {size} bytes came")
    return content


def _tried_again(call: Callable[[], T]) -> T:
    """Call until there is no error, with growing pauses, a few times."""
    for pause in _PAUSES:
        try:
            return call()
        except _FINAL:
            raise
        except Exception:  # whatever the file system raises
            time.sleep(pause)
    return call()


def _time_of(info: Mapping[str, Any]) -> int:
    """Return when a file was changed (ns), or a number that changes with its content; else UNKNOWN_TIME."""
    time_of = next((info[name] for name in _TIMES if info.get(name)), None)
    if isinstance(time_of, datetime):
        return int(time_of.timestamp() * 1e9)
    if isinstance(time_of, (int, float)):
        return int(time_of * 1e9)
    version = time_of or next((info[name] for name in _VERSIONS if info.get(name)), None)
    if version is None:
        return UNKNOWN_TIME
    return int.from_bytes(hashlib.blake2b(str(version).encode(), digest_size=7).digest())

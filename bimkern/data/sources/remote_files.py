"""Files at an address, such as s3://bucket/photos, that fsspec reads, as a whole or in part, by way of a bounded cache.

A read that fails, or is shorter than it must be, is tried again with growing pauses; then it is the fault of the file.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

from bimkern import optional
from bimkern.data.formats import START_BYTES, BadImage, reason_of
from bimkern.data.source import UNKNOWN_TIME, SourceError
from bimkern.data.sources.authority import Authority
from bimkern.data.sources.bounded_cache import BoundedCache
from bimkern.data.sources.per_process import PerProcess
from bimkern.files.cache import cache_folder

T = TypeVar("T")

_PAUSES = (0.1, 0.4, 1.6, 6.4)  # seconds between attempts
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")  # of a file, as file systems call them
_VERSIONS = ("ETag", "etag", "md5Hash", "sha256", "blob_id", "Last-Modified")
_CACHE_GB = "BIMKERN_REMOTE_CACHE_GB"
_ASKED_AT_ONCE = 16  # files that are asked for their sizes


class PartsRefused(Exception):
    """A server sends whole files where parts are asked for."""


# Which another attempt would not mend.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, PartsRefused)


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address, as it was listed."""

    path: str  # as the file system calls it
    size: int | None  # bytes, None: unknown
    time: int  # ns, or what else changes with the content; UNKNOWN_TIME


class RemoteFiles:
    """The files at an address, or below it; every process connects for itself.

    The environment variable BIMKERN_REMOTE_CACHE_GB bounds the cache, which all addresses share: 10 by default.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def below(self) -> dict[str, RemoteFile]:
        """Return all files below the address, by their paths relative to it.

        Raises:
            SourceError: it cannot be listed.
        """
        file_system, root = self._connected(self._url)
        found = self._asked("listed", self._url, lambda: _listed(file_system, root))
        prefix = f"{root.rstrip('/')}/"
        return {path.removeprefix(prefix).lstrip("/"): _remote_file(path, info) for path, info in found.items()}

    def names(self) -> set[str]:
        """Return the names of the folders and files right below the address.

        Raises:
            SourceError: it cannot be listed.
        """
        file_system, root = self._connected(self._url)
        found: list[str] = self._asked("listed", self._url, lambda: file_system.ls(root, detail=False))
        return {path.rstrip("/").rpartition("/")[2] for path in found}

    def named(self, urls: Iterable[str]) -> list[RemoteFile]:
        """Return the files that addresses of the same file system name, each with its size; `*` stands for any name.

        Raises:
            SourceError: one is not there, its size is unknown, or it cannot be asked for.
        """
        paths: list[str] = []
        for url in urls:
            file_system, path = self._connected(url)
            if "*" in path:
                matches = self._asked("listed", url, lambda: sorted(file_system.glob(path)))  # noqa: B023  # called at once
                if not matches:
                    raise SourceError(f"{url} names no file")
                paths += matches
            else:
                paths.append(path)
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            return list(pool.map(self._file_at, dict.fromkeys(paths)))

    def address(self, path: str) -> str:
        """Return the address of a path, as the file system calls it."""
        return self._authority.address(path)

    def whole(self, file: RemoteFile) -> bytes:
        """Return the content of a file.

        Raises:
            BadImage: it cannot be read.
        """
        return self._kept(file, "", lambda: self._read(file))

    def start(self, file: RemoteFile) -> bytes:
        """Return the first bytes of a file, which tell its format.

        Raises:
            BadImage: it cannot be read.
        """
        return self._kept(file, "\nstart", lambda: self._read_start(file))

    def part(self, file: RemoteFile, offset: int, size: int, *, keep: bool = True) -> bytes:
        """Return a part of a file, which it must have; `keep` it in the cache.

        Raises:
            BadImage: it cannot be read.
        """
        if size == 0:  # which is no range
            return b""
        return self._kept(file, f"\n{offset}+{size}", lambda: self._read_part(file, offset, size), keep=keep)

    def _kept(self, file: RemoteFile, part: str, read: Callable[[], bytes], *, keep: bool = True) -> bytes:
        """Return a file, or a part of it, as the cache has it; read it where that does not."""
        keep &= file.time != UNKNOWN_TIME
        server = self._authority.public
        key = f"{self.address(file.path)}\n{file}{part}{server or ''}"
        content = self._cache.get(key) if keep else None
        if content is None:
            try:
                content = _tried_again(read)
            except Exception as error:  # whatever the file system raises
                raise BadImage(f"{self.address(file.path)} cannot be read ({_reason_of(error, reason_of)})") from error
            if keep:
                self._cache.put(key, content)
        return content

    def _read(self, file: RemoteFile) -> bytes:
        content: bytes = self._file_system().cat_file(file.path)
        return _whole(content, file.size)

    def _read_start(self, file: RemoteFile) -> bytes:
        """Return the first bytes of a file; a server that ignores the range sends all."""
        if file.size == 0:  # which has no range
            return b""
        try:
            start: bytes = self._file_system().cat_file(file.path, start=0, end=START_BYTES)[:START_BYTES]
        except _FINAL:
            raise
        except Exception:  # it may refuse ranges, or the file be empty
            return self._read(file)[:START_BYTES]
        return start if file.size is None else _whole(start, min(file.size, START_BYTES))

    def _read_part(self, file: RemoteFile, offset: int, size: int) -> bytes:
        content: bytes = self._file_system().cat_file(file.path, start=offset, end=offset + size)
        if len(content) > size:
            raise PartsRefused("the server sends whole files where parts are asked for; copy them first")
        return _whole(content, size)

    def _file_at(self, path: str) -> RemoteFile:
        file_system, url = self._file_system(), self.address(path)
        found = _remote_file(path, self._asked("read", url, lambda: file_system.info(path)))
        if found.size is None:
            raise SourceError(f"{url} cannot be read in parts, as its server does not tell its size; copy it first")
        return found

    def _asked(self, what: str, url: str, ask: Callable[[], T]) -> T:
        """Ask the file system, again if it fails.

        Raises:
            SourceError: it keeps failing; the file or folder cannot be listed, or read.
        """
        try:
            return _tried_again(ask)
        except Exception as error:
            raise SourceError(f"{url} cannot be {what} ({_reason_of(error, optional.first_line)})") from error

    def _connected(self, url: str) -> tuple[Any, str]:
        """Return the file system, and the path of an address in it.

        Raises:
            SourceError: the address is of another server or account.
        """
        file_system = self._file_system()
        if (other := Authority.of(file_system, url)) != self._authority:
            raise SourceError(f"{self._authority.before} and {other.before} differ: name files of one server")
        path: str = file_system._strip_protocol(url)
        return file_system, path

    @cached_property
    def _file_system(self) -> PerProcess[Any]:
        return PerProcess(self._connect)

    @cached_property
    def _authority(self) -> Authority:
        return Authority.of(self._file_system(), self._url)

    @cached_property
    def _cache(self) -> BoundedCache:
        text = os.environ.get(_CACHE_GB, "10")
        try:
            limit = int(float(text) * 1e9)
        except (ValueError, OverflowError):
            raise SourceError(f"{_CACHE_GB} must be a finite number, got {text!r}") from None
        return BoundedCache(cache_folder() / "remote-v1", limit)

    def _connect(self) -> Any:
        """Return the file system, of this process alone.

        Raises:
            SourceError: the package that reads it is missing, or there is none for it.
        """
        try:
            fsspec = optional.load("fsspec")
        except optional.Unusable as reason:
            raise SourceError(f"{self._url} needs fsspec ({reason}); pip install 'bimkern[remote]'") from reason
        try:
            return fsspec.core.url_to_fs(self._url, skip_instance_cache=True)[0]
        except ImportError as error:  # it names the package
            raise SourceError(f"{self._url}: {optional.first_line(error)}") from error
        except Exception as error:
            raise SourceError(f"{self._url} cannot be reached ({optional.first_line(error)})") from error


def _reason_of(error: Exception, say: Callable[[Exception], str]) -> str:
    return "there is none" if isinstance(error, FileNotFoundError) else say(error)


def refuse_several_kinds(urls: Sequence[str]) -> None:
    """Raise SourceError if addresses are of several file systems."""
    if len({url.partition("://")[0] for url in urls}) > 1:
        raise SourceError(f"{', '.join(urls)}: all must begin in the same way, as in s3://")


def _remote_file(path: str, info: Mapping[str, Any]) -> RemoteFile:
    return RemoteFile(path, info.get("size"), _time_of(info))


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

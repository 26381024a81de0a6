"""Tar files: where the content of every member lies, found from the headers alone. Nothing is extracted.

Read are ustar, GNU and pax archives, also those that end early or have damaged parts: what is sound is listed, and
what is not is a fault with its offset.

Source: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

import os
import posixpath
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bimkern.data.names import decoded

BLOCK = 512
_WINDOW = 16 * BLOCK  # bytes that are read at once: the headers of several small members, little of a large one
_FAR_WINDOW = 1 << 20  # the same, where a read takes as long as so many bytes do
_FAR = 1 << 17  # a member of so many bytes is worth a read of its own there
_LONGEST = 1 << 20  # bytes of a long name or of extended attributes

_FILES = b"0\x007"  # types of members
_FOLDER = ord("5")
_REFUSED = {
    ord("1"): "a link, not a file",
    ord("2"): "a link, not a file",
    ord("3"): "a device, not a file",
    ord("4"): "a device, not a file",
    ord("6"): "a pipe, not a file",
    ord("S"): "a sparse file",
}
_LONG_NAME, _LONG_LINK, _PAX, _SOLARIS_PAX, _GLOBAL_PAX = b"LKxXg"
_PAX_RECORD = re.compile(rb"(\d+) ")
_OCTAL = re.compile(rb"[0-7]*")
_LONGEST_DECIMAL = 20  # digits


@dataclass(frozen=True)
class Fault:
    """A part of a tar file that is not used."""

    offset: int  # bytes, of the header
    name: str  # of the member, as far as it is known
    reason: str


@dataclass
class Members:
    """The members of a tar file that are files, in its order."""

    names: bytearray = field(default_factory=bytearray)  # of all, one after the other
    ends: "array[int]" = field(default_factory=lambda: array("q"))  # of the names
    offsets: "array[int]" = field(default_factory=lambda: array("q"))  # bytes, of the contents
    sizes: "array[int]" = field(default_factory=lambda: array("q"))  # bytes, of the contents
    faults: list[Fault] = field(default_factory=list)

    def add(self, name: bytes, offset: int, size: int) -> None:
        self.names += name
        self.ends.append(len(self.names))
        self.offsets.append(offset)
        self.sizes.append(size)


class DamagedHeader(Exception):
    """A block is no header; the message says why."""


def scan(path: Path) -> Members:
    """Find the members of a tar file.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _Scan(lambda at, size: os.pread(descriptor, size, at), os.fstat(descriptor).st_size).run()
    finally:
        os.close(descriptor)


def scan_far(read: Callable[[int, int], bytes], length: int) -> Members:
    """Find the members of a tar file that takes long to answer.

    Members from 128 KiB on are passed over, smaller ones are read with their headers, 1 MiB at once.

    Args:
        read: returns the bytes at an offset: of that size, or fewer where the file ends.
        length: of the file in bytes.
    """
    return _Scan(read, length, _FAR_WINDOW).run()


class _Scan:
    def __init__(self, read: Callable[[int, int], bytes], length: int, window: int = _WINDOW) -> None:
        self._read_at, self._length = read, length
        self._most = window
        self._window, self._start = b"", 0
        self._last = 0  # bytes of the member before
        self._found = Members()
        self._attributes: dict[bytes, bytes] = {}  # of the next member
        self._shared: dict[bytes, bytes] = {}  # of all members that follow

    def run(self) -> Members:
        at = 0
        while (header := self._read(at, BLOCK)) and header.count(0) != BLOCK:
            try:
                at = self._member(header, at)
            except DamagedHeader as error:
                self._found.faults.append(Fault(at, "", str(error)))
                self._attributes = {}
                at = self._next_header(at + BLOCK)
        if not header:
            what = "it ends without an end marker; the file may be incomplete"
            self._found.faults.append(Fault(self._length, "", what))
        return self._found

    def _read(self, at: int, size: int) -> bytes:
        """Return bytes, fewer where the file ends."""
        if at >= self._length:  # perhaps further than pread() can say
            return b""
        begin = at - self._start
        if begin < 0 or begin + size > len(self._window):
            ahead = self._most if self._last < _FAR else _WINDOW
            self._window, self._start, begin = self._read_at(at, max(size, ahead)), at, 0
        return self._window[begin : begin + size]

    def _member(self, header: bytes, at: int) -> int:
        """Take note of what a header announces; return where the next one is.

        Raises:
            DamagedHeader: it is none.
        """
        _check(header)
        size, kind = _number(header[124:136]), header[156]
        data = at + BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _SOLARIS_PAX, _GLOBAL_PAX):
            self._extension(kind, data, size)
            return data + _padded(size)
        attributes = {**self._shared, **self._attributes} if self._shared or self._attributes else {}
        self._attributes = {}
        name = attributes.get(b"path") or _name(header)
        if kind not in _FILES:
            if kind != _FOLDER:
                self._refuse(at, name, _REFUSED.get(kind, f"of tar's type {chr(kind)!r}, not a file"))
            return data + (_padded(size) if kind not in b"123456" else 0)
        if kind == 0 and name.endswith(b"/"):  # a folder of the oldest archives
            return data
        size = _decimal(attributes[b"size"]) if b"size" in attributes else size
        if any(key.startswith(b"GNU.sparse.") for key in attributes):
            self._refuse(at, name, "a sparse file")
        elif data + size > self._length:
            self._refuse(at, name, f"truncated, or of a wrong size: {size} bytes, {self._length - data} follow")
            return self._next_header(data)
        elif reason := _unsafe(name):
            self._refuse(at, name, reason)
        else:
            self._found.add(_normal(name), data, size)
            self._last = size
        return data + _padded(size)

    def _extension(self, kind: int, data: int, size: int) -> None:
        if size > min(_LONGEST, self._length - data):
            raise DamagedHeader(f"a long name or attributes of {size} bytes")
        content = self._read(data, size)
        if kind == _LONG_NAME:
            self._attributes[b"path"] = content.rstrip(b"\0")
        elif kind in (_PAX, _SOLARIS_PAX):
            self._attributes |= _records(content)
        elif kind == _GLOBAL_PAX:
            self._shared |= _records(content)

    def _refuse(self, at: int, name: bytes, reason: str) -> None:
        self._found.faults.append(Fault(at, decoded(name), reason))

    def _next_header(self, at: int) -> int:
        """Return where the next block is that may be a header, the end of the file where there is none."""
        self._last = 0  # no member is passed over
        while block := self._read(at, BLOCK):
            if block[257:262] == b"ustar":
                try:
                    _check(block)
                    return at
                except DamagedHeader:
                    pass
            at += BLOCK
        return self._length


def _check(header: bytes) -> None:
    """Compare a header with its checksum."""
    if len(header) < BLOCK:
        raise DamagedHeader("the file ends within a header")
    stored = _number(header[148:156])
    unsigned = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if stored != unsigned and stored != unsigned - 256 * sum(byte > 127 for byte in header):  # old tars take it signed
        raise DamagedHeader("a header with a wrong checksum")


def _number(digits: bytes) -> int:
    """Read an octal number, or one in base 256, which is marked by its first bit."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:])
    octal = digits.partition(b"\0")[0].strip()
    if not _OCTAL.fullmatch(octal):  # int() would also take a sign, which makes a size negative
        raise DamagedHeader("a header with an invalid number")
    return int(octal or b"0", 8)


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > _LONGEST_DECIMAL:  # int() refuses thousands
        raise DamagedHeader("an invalid size in extended attributes")
    return int(digits)


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _records(content: bytes) -> dict[bytes, bytes]:
    """Read extended attributes: lines of their own length, a key and a value."""
    found, at = {}, 0
    while match := _PAX_RECORD.match(content, at):
        end = at + _decimal(match[1])
        key, equals, value = content[match.end() : end - 1].partition(b"=")
        if not equals or end <= at or content[end - 1 : end] != b"\n":
            raise DamagedHeader("invalid extended attributes")
        found[key] = value
        at = end
    return found


def _unsafe(name: bytes) -> str | None:
    """Return why a name is no relative path inside the archive, None if it is one."""
    if name.startswith(b"/"):
        return "an absolute path"
    if b".." in name and b".." in name.split(b"/"):
        return "a path with '..'"
    return None if name.strip(b"/.") else "no name"


def _normal(name: bytes) -> bytes:
    """Return a path without its `.` and empty parts."""
    return posixpath.normpath(name) if name.startswith(b"./") or b"//" in name or b"/./" in name else name


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK

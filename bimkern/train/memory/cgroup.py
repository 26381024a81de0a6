"""The limits of memory that containers, batch systems and service managers set by Linux control groups, v1 and v2."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

_PROCESS = Path("/proc/self")
_UNLIMITED = 2**62  # v1 says a number of about 2**63, in whole pages
# By the type of file system: what a group allows, what it uses, and the part of its file cache that the kernel reclaims
# on demand. In v1, the statistics of a group with its children are called totals.
_FILES = {
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
}


def room(process: Path = _PROCESS) -> int | None:
    """Return the bytes that a process can still allocate under the limits of its group and those above it.

    Args:
        process: the folder of the process, as in /proc.

    Returns:
        The least of them; None if no group sets a limit.
    """
    try:
        rooms = [_room_in(folder, kind) for kind, folder in _groups(process)]
    except (OSError, ValueError):  # no Linux, or /proc is closed
        return None
    return min((found for found in rooms if found is not None), default=None)


def _groups(process: Path) -> Iterator[tuple[str, Path]]:
    """Yield the type of file system and the folder of the process's group and those above it, as far as mounted."""
    paths: dict[str, Path] = {}
    for line in _lines(process / "cgroup"):
        _, controllers, group = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = Path(group)
        elif "memory" in controllers.split(","):
            paths["cgroup"] = Path(group)
    mounts = list(_mounts(process))
    for kind, path in paths.items():
        own = [(root, folder) for of, root, folder in mounts if of == kind]
        # Of several, those that hold the path. In a container the path may be another than the mount says.
        for root, folder in [mount for mount in own if path.is_relative_to(mount[0])] or own:
            yield kind, folder
            for part in path.relative_to(root).parts if path.is_relative_to(root) else ():
                folder /= part
                yield kind, folder


def _mounts(process: Path) -> Iterator[tuple[str, Path, Path]]:
    """Yield the type, the root and the folder of every mounted hierarchy that may count memory."""
    for line in _lines(process / "mountinfo"):
        place, _, source = line.partition(" - ")
        kind, *_, options = source.split()
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            root, folder = (re.sub(r"\\([0-7]{3})", _character, field) for field in place.split()[3:5])
            yield kind, Path(root), Path(folder)


def _character(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1], 8))


def _lines(file: Path) -> list[str]:
    text = os.fsdecode(file.read_bytes())  # the names of other mounts may be in any encoding
    return [line for line in text.split("\n") if line]


def _room_in(folder: Path, kind: str) -> int | None:
    limit_file, used_file, cached_name = _FILES[kind]
    try:
        limit, used = ((folder / name).read_text().strip() for name in (limit_file, used_file))
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        if limit == "max" or int(limit) > _UNLIMITED:
            return None
        return max(int(limit) - int(used) + int(lines[cached_name]), 0)
    except (OSError, ValueError, KeyError):  # the root of v2 has no limit, and not every group counts memory
        return None

"""Faults put into a copy of the kernels, one at a time: their random cases must notice each."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fault:
    """A text of a kernel's file that is replaced; which file, a subclass says."""

    op: str  # whose cases run
    name: str
    old: str
    new: str
    occurrence: int = field(default=1, kw_only=True)

    @property
    def path(self) -> Path:
        raise NotImplementedError

    def put_in(self, text: str) -> str:
        """Replace the occurrence of the old text.

        Raises:
            SystemExit: the kernel has no such text any more.
        """
        parts = text.split(self.old)
        if len(parts) <= self.occurrence:
            sys.exit(f"error: {self.path} has no '{self.old}': mend the fault '{self.name}'")
        before, after = parts[: self.occurrence], parts[self.occurrence :]
        return self.old.join(before) + self.new + self.old.join(after)


def chosen(faults: Sequence[Any], words: Sequence[str]) -> list[Any]:
    """Return the faults whose name has one of the words; without words, all."""
    return [f for f in faults if not words or any(word in f"{f.op}: {f.name}" for word in words)]


def check(faults: Sequence[Any], tree: Path, run: Callable[[Any], str | None]) -> int:
    """Put each fault into the tree, and run the cases, which return what they notice; return 1 if one is missed."""
    missed = 0
    for fault in faults:
        target = tree / fault.path
        sound = target.read_text()
        target.write_text(fault.put_in(sound))
        try:
            noticed = run(fault)
        finally:
            target.write_text(sound)
        missed += noticed is None
        print(f"{fault.op + ': ' + fault.name:65} {noticed or 'MISSED'}", flush=True)
    print(f"{len(faults) - missed} of {len(faults)} faults noticed")
    return 1 if missed else 0

"""Faults put into a copy of the sources, one at a time: random cases must notice each.

python tests/helpers/mutation.py [WORD]...      those whose name has a word; without: all
"""

import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("tests/csrc/host_cuda/mutants.py", "tests/csrc/arena/mutants.py", "tests/ops/triton_mutants.py")
NONE_CHOSEN = 3  # exit code of a script without a fault that has one of the words


@dataclass(frozen=True)
class Fault(ABC):
    """A text of a kernel's file that is replaced; which file, a subclass says."""

    op: str  # whose cases run
    name: str
    old: str
    new: str
    occurrence: int = field(default=1, kw_only=True)

    @property
    @abstractmethod
    def path(self) -> Path: ...

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
    """Return the faults whose name has one of the words; without words, all.

    Raises:
        SystemExit: there are none; its code is NONE_CHOSEN.
    """
    found = [f for f in faults if not words or any(word in f"{f.op}: {f.name}" for word in words)]
    return found or sys.exit(NONE_CHOSEN)


def copy_tree(sources: Iterable[Path], root: Path, tree: Path) -> None:
    """Copy files below root into the tree; files that are equal keep their time, so that they are not rebuilt."""
    for source in sources:
        copy = tree / source.relative_to(root)
        if source.is_file() and not (copy.exists() and copy.read_bytes() == source.read_bytes()):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


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


def main(words: Sequence[str]) -> int:
    """Run all scripts; return 1 if one of them fails, or none has a fault with one of the words."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    codes = {
        subprocess.run([sys.executable, ROOT / script, *words], env=environment, check=False).returncode
        for script in SCRIPTS
    }
    if codes == {NONE_CHOSEN}:
        print(f"error: no fault's name has one of: {', '.join(words)}", file=sys.stderr)
        return 1
    return 0 if codes <= {0, NONE_CHOSEN} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The code in README and the manual, for tests to run."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python(page: Path) -> list[str]:
    """Return the blocks of Python on a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Return the arguments of every `python -m program ...` in blocks of commands and in running text."""
    text = "\n".join(page.read_text() for page in PAGES)
    lines = re.findall(rf"python -m {re.escape(program)}(?![\w.])([^`\n]*)", text)
    return [shlex.split(line, comments=True) for line in lines]


def links(page: Path) -> list[str]:
    """Return the targets of links and pictures that are files."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return [target.partition("#")[0] for target in targets if not re.match(r"https?:|#", target)]


@dataclass(frozen=True)
class Step:
    """A block of a page that a reader works through: a file to save, or a command to run."""

    text: str
    file: str | None  # the name to save it under; None: a command
    interrupted: bool  # whether the reader is to press Ctrl-C


def steps(page: Path) -> list[Step]:
    """Return the files and commands of a page in order, a step for each line of a block of commands."""
    found = []
    for prose, language, block in re.findall(r"(.*?)^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        before = prose.rpartition("\n## ")[2]
        if language == "python":
            (name,) = re.findall(r"as\s`([\w.]+)`", before)
            found.append(Step(block, name, interrupted=False))
        else:
            found += [Step(line, None, interrupted="Ctrl-C" in before) for line in block.splitlines()]
    return found

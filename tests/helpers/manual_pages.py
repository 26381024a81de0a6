"""The code in README and the manual, for tests to run."""

import re
import shlex
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

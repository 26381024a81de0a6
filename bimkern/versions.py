"""What is installed: versions, and the commit of a checkout."""

import platform
import re
from pathlib import Path

import numpy
import torch

import bimkern


def installed() -> dict[str, str]:
    return {
        "bimkern": bimkern.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def commit(root: Path = Path(bimkern.__file__).parent.parent) -> str | None:
    """Return the commit that is checked out where this package lies, changed since or not; None outside a checkout.

    Read from files, as git may be missing, or refuse the folder of another user.
    """
    try:
        git = root / ".git"
        if git.is_file():  # of a worktree or a submodule
            git = root / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        branch = head.removeprefix("ref:").strip()
        shared = git / "commondir"
        common = git / shared.read_text().strip() if shared.is_file() else git
        if (common / branch).is_file():
            return (common / branch).read_text().strip()
        packed = re.search(rf"^(\w+) {re.escape(branch)}$", (common / "packed-refs").read_text(), re.MULTILINE)
    except OSError:
        return None
    return packed and packed[1]

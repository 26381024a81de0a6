"""The cache folder, for what can be recomputed."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return bimkern's folder in XDG_CACHE_HOME, by default in ~/.cache; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bimkern"

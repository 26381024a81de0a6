"""Empty folders for XDG_CACHE_HOME, which share the arena's module: it takes a minute to build."""

from pathlib import Path

from bimkern.files.cache import cache_folder


def empty_cache(folder: Path) -> str:
    """Return a folder for XDG_CACHE_HOME that holds nothing but the current cache's modules of the arena.

    A module is named by what it was built from, so no test can take a wrong one.
    """
    modules = cache_folder() / "arena"
    modules.mkdir(parents=True, exist_ok=True)
    (folder / "bimkern").mkdir(parents=True)
    (folder / "bimkern" / "arena").symlink_to(modules)
    return str(folder)

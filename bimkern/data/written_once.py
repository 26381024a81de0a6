"""Images that come with installed packages, written to a folder of the cache when they are first asked for."""

from collections.abc import Callable
from pathlib import Path

from bimkern.data.source import SourceError
from bimkern.files import atomic
from bimkern.files.cache import cache_folder


def written_once(name: str, write: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, which a function fills on first use.

    Raises:
        SourceError: it cannot be written.
    """
    folder = cache_folder() / name
    if not folder.is_dir():
        try:
            with atomic.created_folder(folder) as scratch:
                write(scratch)
        except OSError as error:
            raise SourceError(
                f"{folder} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can"
            ) from error
    return folder

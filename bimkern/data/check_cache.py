"""The cache of the image check: what was found of sound files.

While files are checked, results are appended to a journal, one line of JSON each, so that a check that is killed
continues where it was. A check that ends writes all results in columns, and deletes the journal.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict

from bimkern.data.file_checks import FileCheck, FileChecks
from bimkern.data.names import Names
from bimkern.data.source import UNKNOWN_TIME
from bimkern.files import columns, jsonl
from bimkern.files.cache import cache_folder

logger = logging.getLogger("bimkern.data")

_VERSION = 4  # of the check; a cache of another version is not read


class CheckCache:
    """Results of earlier checks; if they cannot be stored, the check continues with a warning."""

    def __init__(self, name: str) -> None:
        """Open the cache of what has a name, which need not exist."""
        folder = cache_folder() / f"checked-v{_VERSION}"
        self._path, self._journal = folder / f"{name}.columns", folder / f"{name}.jsonl"
        self._usable = True

    def read(self, files: Names) -> FileChecks:
        """Return what is known of files; the others are unchecked."""
        found = self._stored().of_files(files)
        for file, result in self._added().items():
            if (i := files.index_of(file)) is not None:
                found.put(i, result)
        return found

    def append(self, found: Mapping[str, FileCheck]) -> None:
        """Store results, which store() writes again."""
        known = (item for item in found.items() if item[1].fault is None and item[1].mtime_ns != UNKNOWN_TIME)
        sound = [{"file": file} | asdict(result) for file, result in known]
        if self._usable and sound:
            try:
                self._journal.parent.mkdir(parents=True, exist_ok=True)
                jsonl.append(self._journal, sound)
            except OSError as error:
                self._warn(error)

    def store(self, found: FileChecks) -> None:
        """Store the results of a check that has ended, beside those that are known of other files."""
        if not self._journal.exists():
            return
        stored = self._stored()
        others = stored.where(found.names.indexes_of(stored.names) < 0)
        known = found.where(found.sound & (found.stats[:, 1] != UNKNOWN_TIME))
        try:
            columns.write(self._path, (known.joined(others) if len(others) else known).to_columns())
            self._journal.unlink()
        except OSError as error:
            self._warn(error)

    def _stored(self) -> FileChecks:
        found = columns.read(self._path)
        return FileChecks(Names.of(())) if found is None else FileChecks.from_columns(found)

    def _added(self) -> dict[str, FileCheck]:
        found = {}
        try:
            for record in jsonl.stream(self._journal):
                with suppress(KeyError, TypeError):
                    file = record.pop("file")
                    found[file] = FileCheck(**record)
        except OSError:
            return {}
        return found

    def _warn(self, error: OSError) -> None:
        self._usable = False
        logger.warning(
            "%s cannot be written (%s): the next run checks the images again; set XDG_CACHE_HOME to another folder",
            self._path,
            error.strerror,
        )

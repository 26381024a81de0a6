"""The pictures of saves: the newest under one name, and some of them for good, each under its step."""

import re
import shutil
from pathlib import Path

from bimkern.files import atomic

_KEPT = 100  # at most, of a run


class KeptPictures:
    """Keep the picture of every save; of more than 100 saves, one for every hundredth of the run."""

    def __init__(self, folder: Path, num_steps: int, name: str = "reconstruction") -> None:
        self.folder, self.newest = folder, folder / f"{name}.png"
        self._num_steps, self._name = num_steps, name

    def keep(self, step: int) -> Path | None:
        """Copy the newest picture under the step of a save; return None where it need not be kept.

        Raises:
            OSError: it cannot be written.
        """
        last = max((earlier for earlier in self._steps() if earlier < step), default=None)
        if last is not None and (step - last) * _KEPT < self._num_steps:
            return None
        kept = self._path(step)
        with atomic.replaced(kept) as scratch:
            shutil.copyfile(self.newest, scratch)
        return kept

    def after(self, step: int) -> dict[int, Path]:
        """Return the pictures that are kept of later steps, by step."""
        return {later: self._path(later) for later in self._steps() if later > step}

    def _steps(self) -> list[int]:
        of_step = re.compile(rf"{self._name}-(\d+)\.png")
        return sorted(int(found[1]) for path in self.folder.iterdir() if (found := of_step.fullmatch(path.name)))

    def _path(self, step: int) -> Path:
        return self.folder / f"{self._name}-{step:08d}.png"

"""What the commands that evaluate runs have in common: checks of options, and where a picture goes."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from bimkern.importers.weights_file import is_run
from bimkern.train.config.run import ConfigError

logger = logging.getLogger("bimkern.evaluate")


def check_runs(runs: Sequence[Path]) -> None:
    """Raise ConfigError unless there is a run, and each of them once."""
    if not runs:
        raise ConfigError("RUN is missing; see --help")
    if len(set(runs)) < len(runs):
        raise ConfigError("a RUN is given twice; give it once")


def check_picture(picture: Path | None) -> None:
    """Raise ConfigError unless a picture is a PNG."""
    if picture is not None and picture.suffix.lower() != ".png":
        raise ConfigError(f"--picture is written as PNG and must end in .png, got {picture}")


def check_pixels(limit: int | None) -> None:
    """Raise ConfigError unless images of some size may be read; None: as in training."""
    if limit is not None and limit < 1:
        raise ConfigError(f"--max-pixels must be at least 1, got {limit}")


def write_picture(draw: Callable[[Path], None], given: Path | None, run: Path, name: str) -> Path | None:
    """Draw a picture where it is asked for or else in the run folder, which may be another's: there, it may fail.

    Returns:
        The file; None where a run is no folder of its own, or is not to be written to.

    Raises:
        ConfigError: what is asked for cannot be written.
    """
    if given is not None:
        draw(given)
        return given
    if not (is_run(run) and (run / "checkpoints").is_dir()):
        return None
    path = run / "pictures" / f"{name}.png"
    try:
        draw(path)
    except ConfigError as error:
        logger.warning("%s; name another file with --picture", error)
        return None
    return path

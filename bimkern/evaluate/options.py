"""What the commands that evaluate runs have in common: checks of options, and where a picture goes."""

from collections.abc import Sequence
from pathlib import Path

from bimkern.importers.weights_file import is_run
from bimkern.train.config.run import ConfigError


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


def picture_in(run: Path, name: str) -> Path | None:
    """Return the file of a picture in a run folder, None where a run is no folder of its own."""
    return run / "pictures" / f"{name}.png" if is_run(run) and (run / "checkpoints").is_dir() else None

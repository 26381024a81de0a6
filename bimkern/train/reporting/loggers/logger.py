"""Loggers: what one must be able to do, and which of them --log names.

A logger of your own is a piece like any other. Its name for --log is that of its class, in lower case:

    @pieces.register(Logger)
    @dataclass(frozen=True)
    class Console: ...
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from bimkern import optional, pieces
from bimkern.train.config.run import ConfigError
from bimkern.train.reporting.scalars import Scalar


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger is opened for."""

    folder: Path
    id: str | None  # what OpenLogger.id was in an earlier process of this run; None at its first


class OpenLogger(Protocol):
    """A logger at work on one run. All calls but the first come from one thread; any may raise any Exception."""

    @property
    def id(self) -> str:
        """What the run is called there, to continue it later."""

    def hyperparameters(self, values: Mapping[str, Scalar]) -> None:
        """Take the config of the run, flat; called once a run."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take the finite numbers of a logged step. Steps only increase, and none comes twice."""

    def picture(self, step: int, path: Path) -> None:
        """Take the picture of a save, a PNG, after the metrics of its step."""

    def close(self) -> None: ...


class Logger(Protocol):
    """Opens a run; a frozen dataclass."""

    package: ClassVar[str | None]  # what it imports, if that is optional

    def open(self, run: LoggedRun) -> OpenLogger:
        """Begin a run, or continue it. Any Exception ends a new run before its first step."""


def choose(names: Sequence[str]) -> dict[str, Logger]:
    """Return the loggers that --log names, by name.

    Raises:
        ConfigError: a name is unknown, or given twice.
        Unusable: the package of one cannot be used here; the message gives the reason and the remedy.
    """
    known = {name.lower(): logger for name, logger in pieces.registered(Logger).items()}
    chosen: dict[str, Logger] = {}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1) or sorted(known)
            raise ConfigError(f"--log must name loggers, got {name!r}; choose {' or '.join(close)}")
        if name in chosen:
            raise ConfigError(f"--log names {name} twice; name it once")
        chosen[name] = known[name]()
        package = chosen[name].package
        if package is None:
            continue
        try:
            optional.load(package)
        except optional.Unusable as reason:
            raise optional.Unusable(f"--log {name}: {reason}; pip install {package}") from reason
    return chosen

"""The config of a run as JSON: written, read back, and compared."""

from dataclasses import fields
from typing import Any

from bimkern import pieces
from bimkern.pieces import PieceError
from bimkern.train.config.run import FREE_OPTIONS, Config, ConfigError, RunConfig

__all__ = ["STARTS", "differences", "from_json", "refuse_other", "to_json"]

STARTS = "starts"  # in config.json, beside the config itself: what every start of the run was resolved to


def to_json(config: Config) -> dict[str, Any]:
    """Turn a config into JSON values.

    Raises:
        ConfigError: a piece holds what JSON cannot.
    """
    try:
        saved: dict[str, Any] = pieces.to_json(config, "config")
    except PieceError as error:
        raise ConfigError(str(error)) from error
    return saved


def from_json(saved: Any) -> Config:
    """Read a config back from what to_json made of it.

    Raises:
        ConfigError: a type is none of those that may stand in its place, or a value is missing, unknown or refused.
    """
    if isinstance(saved, dict):
        saved = {name: value for name, value in saved.items() if name != STARTS}
    try:
        config: Config = pieces.from_json(saved, Config, "config")
    except PieceError as error:
        raise ConfigError(str(error)) from error
    return config


# Of runs older than an option.
_DEFAULTS: dict[str, Any] = {"phases": [], "augment.interpolation": "bicubic"}
_DEFAULTS |= {f"run.{option.name}": option.default for option in fields(RunConfig)}


def differences(saved: Any, wanted: Any, where: str = "") -> list[str]:
    """List where two configs in JSON differ in what they compute, one line a value."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        lines = []
        for name in sorted(saved.keys() | wanted.keys()):
            path = f"{where}.{name}" if where else name
            if name != "from" and path not in {STARTS, *(f"run.{free}" for free in FREE_OPTIONS)}:
                lines += differences(saved.get(name, _DEFAULTS.get(path)), wanted.get(name), path)
        return lines
    return [] if saved == wanted else [f"{where}: {saved} before, {wanted} now"]


def refuse_other(saved: Any, config: Config, what: str, remedy: str) -> None:
    """Make sure that a saved config computes the same as this one.

    Raises:
        ConfigError: it does not; "<what> with other settings (<the differences>); <remedy>".
    """
    if not isinstance(saved, dict):
        raise ConfigError(f"{what} that does not record its settings; {remedy}")
    changed = differences(saved, to_json(config))
    if changed:
        raise ConfigError(f"{what} with other settings ({'; '.join(changed)}); {remedy}")

"""The config of a run as JSON: written, read back, and compared."""

from dataclasses import fields
from typing import Any

from bimkern import pieces
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD
from bimkern.pieces import PieceError
from bimkern.train.config.run import FREE_OPTIONS, Config, ConfigError, RunConfig

__all__ = ["differences", "from_json", "refuse_other", "to_json"]


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
    try:
        config: Config = pieces.from_json(saved, Config, "config")
    except PieceError as error:
        raise ConfigError(str(error)) from error
    return config


_FREE = {"source", *(f"run.{option}" for option in FREE_OPTIONS)}  # images are compared by their content
# Of runs older than an option.
_DEFAULTS: dict[str, Any] = {"phases": [], "augment.interpolation": "bicubic"}
_DEFAULTS |= {"method.mean": list(IMAGENET_MEAN), "method.std": list(IMAGENET_STD)}
_DEFAULTS |= {f"run.{option.name}": option.default for option in fields(RunConfig)} | {"run.jpeg_draft": 0.0}


def differences(saved: Any, wanted: Any, where: str = "") -> list[str]:
    """List where two configs in JSON differ in what they compute, one line a value."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        lines = []
        for name in sorted(saved.keys() | wanted.keys()):
            path = f"{where}.{name}" if where else name
            if name != "from" and path not in _FREE:
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

"""The config of a run as JSON: written, read back, and compared."""

from dataclasses import fields
from typing import Any

from bimkern import pieces
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD
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


_FREE = {STARTS, "source", *(f"run.{option}" for option in FREE_OPTIONS)}  # images are compared by their content
# Of runs older than an option.
_DEFAULTS: dict[str, Any] = {"phases": [], "augment.interpolation": "bicubic", "augment.crop_filter": "around"}
_DEFAULTS |= {"method.mean": list(IMAGENET_MEAN), "method.std": list(IMAGENET_STD)}
_DEFAULTS |= {f"run.{option.name}": option.default for option in fields(RunConfig)} | {"run.jpeg_draft": 0.0}


_LENGTH = ("run.epochs", "run.steps")


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


def refuse_other(saved: Any, config: Config, what: str, remedy: str, *, resumes: bool = False) -> None:
    """Make sure that a saved config computes the same as this one, which with --extend may be of another length.

    Args:
        saved: the JSON of the config.
        config: the other one.
        what, remedy: words for the error.
        resumes: whether the saved run is to continue, so that --extend is a remedy too.

    Raises:
        ConfigError: it does not; "<what> with other settings (<the differences>); <remedy>".
    """
    if not isinstance(saved, dict):
        raise ConfigError(f"{what} that does not record its settings; {remedy}")
    changed = differences(saved, to_json(config))
    longer = [line for line in changed if line.startswith(_LENGTH)]
    if config.run.extend:
        changed = [line for line in changed if line not in longer]
    if changed:
        if resumes and changed == longer:
            remedy = f"--extend continues a finished run; or {remedy}"
        raise ConfigError(f"{what} with other settings ({'; '.join(changed)}); {remedy}")

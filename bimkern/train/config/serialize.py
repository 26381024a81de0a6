"""The config of a run as JSON: written, read back, and compared."""

from dataclasses import fields
from typing import Any, TypeVar, overload

from bimkern import pieces
from bimkern.mim.model import IMAGENET_MEAN, IMAGENET_STD
from bimkern.pieces import PieceError
from bimkern.train.config.run import Config, ConfigError, RunConfig, RunOptions, TrainingConfig

__all__ = ["STARTS", "differences", "from_json", "refuse_other", "to_json"]

C = TypeVar("C", bound=TrainingConfig)

STARTS = "starts"  # in config.json, beside the config itself: what every start of the run was resolved to


def to_json(config: TrainingConfig) -> dict[str, Any]:
    """Turn a config into JSON values.

    Raises:
        ConfigError: a piece holds what JSON cannot.
    """
    try:
        saved: dict[str, Any] = pieces.to_json(config, "config")
    except PieceError as error:
        raise ConfigError(str(error)) from error
    return saved


@overload
def from_json(saved: Any) -> Config: ...
@overload
def from_json(saved: Any, kind: type[C]) -> C: ...
def from_json(saved: Any, kind: type[Any] = Config) -> Any:
    """Read a config back from what to_json made of it.

    Args:
        saved: the JSON.
        kind: the class of the config.

    Raises:
        ConfigError: a type is none of those that may stand in its place, or a value is missing, unknown or refused.
    """
    if isinstance(saved, dict):
        saved = {name: value for name, value in saved.items() if name != STARTS}
    try:
        return pieces.from_json(saved, kind, "config")
    except PieceError as error:
        raise ConfigError(str(error)) from error


# Of runs older than an option.
_DEFAULTS: dict[str, Any] = {"phases": [], "augment.interpolation": "bicubic", "augment.crop_filter": "around"}
_DEFAULTS |= {"method.mean": list(IMAGENET_MEAN), "method.std": list(IMAGENET_STD)}
_DEFAULTS |= {f"run.{option.name}": option.default for option in fields(RunConfig)} | {"run.jpeg_draft": 0.0}


_LENGTH = ("run.epochs", "run.steps")


def differences(saved: Any, wanted: Any, options: type[RunOptions] = RunConfig) -> list[str]:
    """List where two configs in JSON, with options of a class, differ in what they compute, one line a value."""
    # Images are compared by their content.
    return _differences(saved, wanted, {STARTS, "source", *(f"run.{option}" for option in options.free)}, "")


def _differences(saved: Any, wanted: Any, free: set[str], where: str) -> list[str]:
    if isinstance(saved, dict) and isinstance(wanted, dict):
        lines = []
        for name in sorted(saved.keys() | wanted.keys()):
            path = f"{where}.{name}" if where else name
            if name != "from" and path not in free:
                lines += _differences(saved.get(name, _DEFAULTS.get(path)), wanted.get(name), free, path)
        return lines
    return [] if saved == wanted else [f"{where}: {saved} before, {wanted} now"]


def refuse_other(saved: Any, config: TrainingConfig, what: str, remedy: str, *, resumes: bool = False) -> None:
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
    changed = differences(saved, to_json(config), type(config.run))
    longer = [line for line in changed if line.startswith(_LENGTH)]
    if config.run.extend:
        changed = [line for line in changed if line not in longer]
    if changed:
        if resumes and changed == longer:
            remedy = f"--extend continues a finished run; or {remedy}"
        raise ConfigError(f"{what} with other settings ({'; '.join(changed)}); {remedy}")

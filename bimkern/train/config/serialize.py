"""The config of a run as JSON: written, read back, and compared."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from bimkern.train.config.run import FREE_OPTIONS, Config, ConfigError, RunConfig


def to_json(value: Any) -> Any:
    """Turn a config into JSON values; every dataclass says its type."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(saved: Any) -> Config:
    """Read a config back from what to_json made of it.

    Raises:
        ConfigError: a type is none of those that may stand in its place, or a value is missing, unknown or refused.
    """
    config: Config = _read(saved, Config, "config")
    return config


def _read(saved: Any, hint: Any, where: str) -> Any:
    """Turn a JSON value into what an annotation asks for."""
    choices = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if saved is None and type(None) in choices:
        return None
    types: dict[str, Any] = {c.__name__: c for c in choices if isinstance(c, type) and is_dataclass(c)}
    if types:
        name = saved.get("type") if isinstance(saved, dict) else None
        if name not in types:
            raise ConfigError(f"{where}: unknown type {name!r}; choose one of {', '.join(types)}")
        hints = get_type_hints(types[name])
        values = {n: _read(v, hints.get(n), f"{where}.{n}") for n, v in saved.items() if n != "type"}
        try:
            return types[name](**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from error
    if isinstance(saved, list):
        (item, *_) = next((get_args(choice) for choice in choices if get_origin(choice) is tuple), (None,))
        return tuple(_read(value, item, f"{where}[{i}]") for i, value in enumerate(saved))
    return Path(saved) if isinstance(saved, str) and Path in choices else saved


# Of runs older than an option.
_DEFAULTS: dict[str, Any] = {"phases": [], "augment.interpolation": "bicubic"}
_DEFAULTS |= {f"run.{option.name}": option.default for option in fields(RunConfig)}


def differences(saved: Any, wanted: Any, where: str = "") -> list[str]:
    """List where two configs in JSON differ in what they compute, one line a value."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        lines = []
        for name in sorted(saved.keys() | wanted.keys()):
            path = f"{where}.{name}" if where else name
            if path not in {f"run.{free}" for free in FREE_OPTIONS}:
                lines += differences(saved.get(name, _DEFAULTS.get(path)), wanted.get(name), path)
        return lines
    return [] if saved == wanted else [f"{where}: {saved} before, {wanted} now"]


def refuse_other(saved: Any, config: Config, what: str, remedy: str) -> None:
    """Make sure that a saved config computes the same as this one.

    Raises:
        ConfigError: it does not; "<what> with other settings (<the differences>); <remedy>".
    """
    if not isinstance(saved, dict):
        raise ConfigError(f"{what} that does not tell its settings; {remedy}")
    changed = differences(saved, to_json(config))
    if changed:
        raise ConfigError(f"{what} with other settings ({'; '.join(changed)}); {remedy}")

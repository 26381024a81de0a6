"""Configs in files: the config.json of a run, or TOML with the same keys.

TOML has no null: a key that is absent has its default, and `{ type = "None" }` stands for none where that is another.
"""

import json
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints, overload

import tomlkit
from tomlkit.items import Table

from bimkern.train.config import serialize
from bimkern.train.config.run import Config, ConfigError, TrainingConfig

__all__ = ["read_config", "to_toml"]

C = TypeVar("C", bound=TrainingConfig)

_NONE = {"type": "None"}


@overload
def read_config(path: Path) -> Config: ...
@overload
def read_config(path: Path, kind: type[C]) -> C: ...
def read_config(path: Path, kind: type[Any] = Config) -> Any:
    """Read a config of a class from a file that ends in .json or .toml.

    Raises:
        ConfigError: it cannot be read, or is no config; one line that names the file and the value.
    """
    if path.suffix not in (".json", ".toml"):
        raise ConfigError(f"{path} must be a .json file, such as the config.json of a run, or a .toml file")
    try:
        text = path.read_text(encoding="utf-8")
        saved = json.loads(text) if path.suffix == ".json" else _without_none(tomllib.loads(text))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # the base of what both parsers raise, and of text that is not UTF-8
        raise ConfigError(f"{path} is no {path.suffix[1:].upper()} file ({error})") from error
    try:
        return serialize.from_json(saved, kind)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def to_toml(config: TrainingConfig) -> str:
    """Write a config as TOML, which read_config reads as an equal one; comments name the fields that are none.

    Raises:
        ConfigError: a piece holds what a file cannot.
    """
    saved = serialize.to_json(config)
    return tomlkit.dumps(_table({name: item for name, item in saved.items() if name != "type"}, config))


def _item(saved: Any, value: Any) -> Any:
    """Turn the JSON of a value into what TOML holds."""
    if saved is None:
        return _NONE
    if isinstance(saved, list):
        return [_item(item, inner) for item, inner in zip(saved, value, strict=True)]
    if isinstance(saved, dict):
        return (
            _table(saved, value) if is_dataclass(value) else {name: _item(saved[name], value[name]) for name in saved}
        )
    return saved


def _table(saved: dict[str, Any], value: Any) -> Table:
    """Turn the JSON of a dataclass into a table, without types that the annotations of fields say."""
    hints, table = get_type_hints(type(value)), tomlkit.table()
    defaults = {field.name: field.default for field in fields(value)}
    for name in sorted(saved, key=lambda name: _has_tables(saved[name])):  # whose headings end this table
        if saved[name] is None and defaults[name] is None:
            table.add(tomlkit.comment(f"{name}: none"))
            continue
        inner = getattr(value, name, None)
        said = is_dataclass(inner) and hints[name] is type(inner)
        table[name] = _item({n: v for n, v in saved[name].items() if n != "type"} if said else saved[name], inner)
    return table


def _has_tables(saved: Any) -> bool:
    return isinstance(saved, dict) or (isinstance(saved, list) and any(isinstance(item, dict) for item in saved))


def _without_none(saved: Any) -> Any:
    if isinstance(saved, list):
        return [_without_none(item) for item in saved]
    if isinstance(saved, dict):
        return None if saved == _NONE else {name: _without_none(item) for name, item in saved.items()}
    return saved

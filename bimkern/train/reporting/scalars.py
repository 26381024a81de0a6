"""Records and configs as flat names with one value each, as loggers take them."""

import math
from collections.abc import Iterator
from typing import Any

from bimkern.data.addresses import without_passwords

Scalar = str | float | bool


def finite_numbers(record: dict[str, Any]) -> dict[str, float]:
    """Flatten a metrics record: the items of a list are NAME/1, NAME/2, ...; what is no finite number is left out."""
    return {
        f"{name}/{i + 1}" if isinstance(value, list) else name: number
        for name, value in record.items()
        for i, number in enumerate(value if isinstance(value, list) else [value])
        if isinstance(number, (int, float)) and math.isfinite(number)
    }


def hyperparameters(config: dict[str, Any]) -> dict[str, Scalar]:
    """Flatten a config in JSON: method.encoder.depth, method.heads.0.type, ...; without what is null, and passwords.

    Paths that are no UTF-8 are escaped.
    """
    return {name: _text(value) if isinstance(value, str) else value for name, value in _leaves(config)}


def _text(value: str) -> str:
    return without_passwords(value).encode(errors="backslashreplace").decode()


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Scalar]]:
    if isinstance(value, (dict, list)):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{where}.{name}" if where else f"{name}")
    elif value is not None:
        yield where, value

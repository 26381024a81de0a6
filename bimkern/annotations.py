"""Annotations of fields: the single values that they allow, checked, read from text, and in words.

Known are int, float, bool, str, Path, ImageSize, None and Literal. Tuples, lists, dicts and dataclasses allow no single
value; anything else allows every value.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from bimkern.image_size import ImageSize

__all__ = ["choices", "describe", "origin", "single", "single_from_text"]

Hint = Any

_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path", NoneType: "none"}
_NAMES |= {ImageSize: "the side of a square in pixels, or height x width, such as 160x320"}
_WORDS = {"true": True, "false": False}


def choices(hint: Hint) -> tuple[Hint, ...]:
    """Return the members of a union, or the annotation alone."""
    return get_args(hint) if origin(hint) in (Union, UnionType) else (hint,)


def origin(hint: Hint) -> Any:
    """Return tuple for tuple[int, ...], Literal for Literal["a"], and so on; None for a class."""
    return get_origin(hint)


def describe(hint: Hint) -> str:
    """Say what an annotation allows: "an integer or none"."""
    return " or ".join(dict.fromkeys(_describe_one(choice) for choice in choices(hint)))


def single(value: Any, allowed: Iterable[Hint]) -> Any:
    """Return a value as one of some annotations has it: an int as float, text as Path, both as ImageSize.

    Raises:
        ValueError: none of them allows it.
    """
    for choice in allowed:
        if choice is ImageSize:
            with suppress(ValueError):
                return ImageSize.read(value)
        elif value in get_args(choice) if origin(choice) is Literal else _fits(value, choice):
            return choice(value) if choice in (float, Path) else value
    raise ValueError(f"no choice allows {value!r}")


def single_from_text(text: str, allowed: Iterable[Hint]) -> Any:
    """Read a value from text as one of some annotations has it; none, true and false are words, in any case.

    Raises:
        ValueError: none of them allows it.
    """
    allowed = tuple(allowed)
    if NoneType in allowed and text.lower() == "none":
        return None
    if bool in allowed and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        if number in allowed:
            with suppress(ValueError):
                return number(text)
    for value in (value for choice in allowed if origin(choice) is Literal for value in get_args(choice)):
        if text == str(value):
            return value
    return single(text, allowed)


def _fits(value: Any, choice: Hint) -> bool:
    if choice in (int, float):
        return isinstance(value, (int, choice)) and not isinstance(value, bool)
    if choice in (bool, NoneType):
        return isinstance(value, choice)
    if choice in (str, Path):
        return isinstance(value, (str, choice))
    return origin(choice) not in (tuple, list, dict) and not hasattr(choice, "__dataclass_fields__")


def _describe_one(choice: Hint) -> str:
    kind, arguments = origin(choice), get_args(choice)
    if kind is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if kind is list or (kind is tuple and arguments[1:] == (...,)):
        return f"values, each {describe(arguments[0])}"
    if kind is tuple:
        return f"{len(arguments)} values, each {' or '.join(dict.fromkeys(map(describe, arguments)))}"
    return str(_NAMES.get(choice) or getattr(choice, "__name__", choice))

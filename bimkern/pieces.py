"""Pieces: what a run is made of, by kind and name, ours and those of a user's own file; and their JSON.

A kind is a protocol, such as Masker, Target or Schedule. A piece is a frozen dataclass that registers itself where its
module is imported, and is then read from config files, planned, saved and resumed like ours:

    @pieces.register(Masker)
    @dataclass(frozen=True, kw_only=True)
    class Checkerboard: ...

Its fields hold numbers, text, paths, other dataclasses, and tuples, lists and dicts of these.

A renderer is registered for the class of targets that it draws: `@pieces.register(Renderer, of=HogTarget)`.
"""

import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from bimkern.annotations import choices, describe, origin, single
from bimkern.errors import closest
from bimkern.image_size import ImageSize

__all__ = ["PieceError", "find_for", "fits", "from_json", "register", "registered", "to_json", "types_of"]

T = TypeVar("T", bound=type)
Kind = Any  # a protocol class; `type` would refuse it
_PACKAGE = __name__.partition(".")[0]
_RESERVED = ("type", "from")  # what the JSON of a piece says besides its fields

_NAMED: dict[Kind, dict[str, type]] = {}
_FOR_CLASS: dict[Kind, dict[type, type]] = {}


class PieceError(ValueError):
    """A piece is unknown, or its values are refused; the message names it and the choices."""


def register(kind: Kind, *, of: type | None = None) -> Callable[[T], T]:
    """Return a class decorator that makes a class known as a piece of a kind.

    Args:
        kind: the protocol that the class follows.
        of: the class that it serves, where pieces of this kind are found by class and not by name.

    Raises:
        TypeError: a public member of the protocol is missing; or it is found by name, that is from JSON, and is no
            frozen dataclass, or has a field named type or from.
        ValueError: another class has this name, or serves this class.
    """

    def add(piece: T) -> T:
        if missing := _missing(kind, piece):
            raise TypeError(f"{piece.__name__} is no {kind.__name__}: it has no {', '.join(missing)}")
        if of is None:
            _check_dataclass(piece)
        known: dict[Any, type] = (_NAMED if of is None else _FOR_CLASS).setdefault(kind, {})
        key, other = of or piece.__name__, known.get(of or piece.__name__)
        if other is not None and _full_name(other) != _full_name(piece):  # equal where a module is loaded again
            what = f"{kind.__name__} {piece.__name__}" if of is None else f"{kind.__name__} of {of.__name__}"
            raise ValueError(f"{what} is registered already, by {_full_name(other)}; got {_full_name(piece)}")
        known[key] = piece
        return piece

    return add


def registered(kind: Kind) -> dict[str, type]:
    """Return the pieces of a kind by name."""
    return dict(_NAMED.get(kind, {}))


def types_of(hint: Any) -> dict[str, type]:
    """Return the dataclasses that an annotation allows, by name: those that it names, and the pieces of a kind."""
    found: dict[str, type] = {}
    for choice in choices(hint):
        if isinstance(choice, type):
            found |= {choice.__name__: choice} if is_dataclass(choice) else registered(choice)
    return found


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is a dataclass that an annotation allows: one that it names, or that follows a kind."""
    if not is_dataclass(value):
        return False
    kinds = [choice for choice in choices(hint) if isinstance(choice, type)]
    return any(isinstance(value, k) if is_dataclass(k) else k in _NAMED and not _missing(k, type(value)) for k in kinds)


def find_for(kind: Kind, served: type) -> Any:
    """Return the piece of a kind that serves a class, or the nearest of the classes that it derives from.

    Raises:
        PieceError: none does.
    """
    known = _FOR_CLASS.get(kind, {})
    for base in served.__mro__:
        if base in known:
            return known[base]
    raise PieceError(
        f"no {kind.__name__} is registered for {served.__name__}; register one with "
        f"@pieces.register({kind.__name__}, of={served.__name__})"
    )


def to_json(value: Any, where: str = "") -> Any:
    """Turn dataclasses into JSON values; each says its type, and where it comes from if it is not ours.

    Args:
        value: a dataclass, or what a field of one may hold.
        where: its name, for errors; a dataclass has its class's by default.

    Raises:
        PieceError: a field holds something else.
    """
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        where = where or cls.__name__
        source = {} if cls.__module__.partition(".")[0] == _PACKAGE else {"from": _source(cls)}
        given = {f.name: to_json(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value) if f.init}
        if taken := [name for name in _RESERVED if name in given]:
            raise PieceError(f"{where}: a field of {cls.__name__} must not be named {taken[0]}; rename it")
        return {"type": cls.__name__} | source | given
    if isinstance(value, ImageSize):
        return value.saved
    if isinstance(value, (tuple, list)):
        return [to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: to_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, float)):  # bool is an int
        return value
    what = "numbers, text, paths, dataclasses, and tuples, lists and dicts (by text) of these"
    raise PieceError(f"{where}: a config holds {what}, got {type(value).__name__}")


def from_json(saved: Any, hint: Any, where: str) -> Any:
    """Turn a value that to_json made into what an annotation asks for.

    Args:
        saved: the JSON value. A dataclass need not say its type where the annotation is that one.
        hint: a dataclass, a kind of pieces, a tuple, list or dict, a union of these, or anything else, as
            bimkern.annotations takes it.
        where: its name, for errors.

    Raises:
        PieceError: a type is unknown here, or a value is missing, unknown or refused.
    """
    allowed = choices(hint)
    if saved is None and type(None) in allowed:
        return None
    types = types_of(hint)
    generic = {kind: choice for choice in reversed(allowed) if (kind := origin(choice)) is not None}
    if isinstance(saved, list) and ImageSize not in allowed and (generic or not types):
        return _list_from_json(saved, generic.get(tuple), generic.get(list), where)
    if isinstance(saved, dict) and dict in generic and not ("type" in saved and types):
        _, item = get_args(generic[dict])
        return {key: from_json(value, item, f"{where}[{key!r}]") for key, value in saved.items()}
    if types and isinstance(saved, dict):
        only = next(iter(types)) if len(types) == 1 and not any(map(registered, allowed)) else None
        return _dataclass_from_json(saved, types, only, where)
    try:
        return single(saved, [choice for choice in allowed if not types_of(choice)])
    except ValueError:
        raise PieceError(f"{where}: must be {describe(hint)}, got {saved!r}") from None


def _list_from_json(saved: list[Any], as_tuple: Any, as_list: Any, where: str) -> tuple[Any, ...] | list[Any]:
    """Turn a list into the tuple that is asked for, or the list; into a tuple where neither is."""
    items = get_args(as_list if as_tuple is None else as_tuple) or (Any, ...)
    if as_tuple is None or items[1:] == (...,):
        items = items[:1] * len(saved)
    if len(items) != len(saved):
        raise PieceError(f"{where}: must hold {len(items)} values, got {len(saved)}")
    found = [from_json(value, item, f"{where}[{i}]") for i, (value, item) in enumerate(zip(saved, items, strict=True))]
    return found if as_list is not None and as_tuple is None else tuple(found)


def _dataclass_from_json(saved: dict[str, Any], types: dict[str, Any], only: str | None, where: str) -> Any:
    name = saved.get("type", only)
    if name not in types:
        source = saved.get("from")
        remedy = ""
        if source:
            remedy = f"import {_named_source(source)}, which defines it, first (a command: --import {source}); or "
        raise PieceError(f"{where}: unknown type {name!r}; {remedy}choose one of {', '.join(sorted(types))}")
    hints = get_type_hints(types[name])
    known = [field.name for field in fields(types[name]) if field.init]
    given = {n: v for n, v in saved.items() if n not in _RESERVED}
    if unknown := [n for n in given if n not in known]:
        raise PieceError(f"{where}.{unknown[0]}: {name} has no such field; {closest(unknown[0], known)}")
    values = {n: from_json(v, hints[n], f"{where}.{n}") for n, v in given.items()}
    try:
        return types[name](**values)
    except (TypeError, ValueError) as error:
        raise PieceError(f"{where}: {error}") from error


def _check_dataclass(piece: Any) -> None:
    """Make sure that JSON can hold a piece; annotations that are no fields are those of a class without @dataclass."""
    known = getattr(piece, "__dataclass_fields__", {})
    frozen = getattr(getattr(piece, "__dataclass_params__", None), "frozen", False)
    if not frozen or get_annotations(piece).keys() - known.keys():
        remedy = "write @dataclass(frozen=True, kw_only=True) below @pieces.register"
        raise TypeError(f"{piece.__name__} must be a frozen dataclass; {remedy}")
    if taken := [field.name for field in fields(piece) if field.name in _RESERVED]:
        raise TypeError(f"{piece.__name__} must not have a field named {taken[0]}; rename it")


def _source(cls: type) -> str:
    """Return the module that defines a class; of a program that is run, its name or else its file."""
    if cls.__module__ != "__main__":
        return cls.__module__
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return main.__spec__.name
    file = getattr(main, "__file__", None)  # a prompt has none
    return cls.__module__ if file is None else str(Path(file).resolve())


def _named_source(source: str) -> str:
    if source == "__main__":
        return "the file"
    return f"the file {source}" if source.endswith(".py") else source


def _missing(kind: Kind, piece: type) -> list[str]:
    """Return the public members of a protocol that a class does not have."""
    return sorted(_members(kind) - _members(piece) - set(dir(piece)))


def _members(cls: type) -> set[str]:
    """Return the public names that a class, and protocols that it derives from, define or annotate."""
    bases = [base for base in cls.__mro__ if base is not object]
    names = {name for base in bases for name in (*vars(base), *get_annotations(base))}
    return {name for name in names if not name.startswith("_")}


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"

"""Pieces: what a run is made of, by kind and name, ours and those of a user's own file; and their JSON.

A kind is a protocol, such as Masker, Target or Schedule. A piece is a frozen dataclass that registers itself where its
module is imported, and is then read from config files, planned, saved and resumed like ours:

    @pieces.register(Masker)
    @dataclass(frozen=True, kw_only=True)
    class Checkerboard: ...

A renderer is registered for the class of targets that it draws: `@pieces.register(Renderer, of=HogTarget)`.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from inspect import get_annotations
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T", bound=type)
Kind = Any  # a protocol class; `type` would refuse it
_PACKAGE = __name__.partition(".")[0]

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
        TypeError: a public member of the protocol is missing.
        ValueError: another class has this name, or serves this class.
    """

    def add(piece: T) -> T:
        missing = sorted(_members(kind) - _members(piece) - set(dir(piece)))
        if missing:
            raise TypeError(f"{piece.__name__} is no {kind.__name__}: it has no {', '.join(missing)}")
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


def to_json(value: Any) -> Any:
    """Turn dataclasses into JSON values; each says its type, and where it comes from if it is not ours."""
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        source = {} if cls.__module__.partition(".")[0] == _PACKAGE else {"from": cls.__module__}
        return {"type": cls.__name__} | source | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(saved: Any, hint: Any, where: str) -> Any:
    """Turn a value that to_json made into what an annotation asks for.

    Args:
        saved: the JSON value.
        hint: a dataclass, a kind of pieces, a tuple, a union of these, or anything else, which is taken as it is.
        where: its name, for errors.

    Raises:
        PieceError: a type is unknown here, or a value is missing, unknown or refused.
    """
    choices = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if saved is None and type(None) in choices:
        return None
    types: dict[str, Any] = {}
    for choice in choices:
        if isinstance(choice, type):
            types |= {choice.__name__: choice} if is_dataclass(choice) else registered(choice)
    if types:
        return _dataclass_from_json(saved, types, where)
    if isinstance(saved, list):
        (item, *_) = next((get_args(choice) for choice in choices if get_origin(choice) is tuple), (None,))
        return tuple(from_json(value, item, f"{where}[{i}]") for i, value in enumerate(saved))
    return Path(saved) if isinstance(saved, str) and Path in choices else saved


def _dataclass_from_json(saved: Any, types: dict[str, Any], where: str) -> Any:
    name = saved.get("type") if isinstance(saved, dict) else None
    if name not in types:
        source = saved.get("from") if isinstance(saved, dict) else None
        remedy = f"import {source}, which defines it, first; or " if source else ""
        raise PieceError(f"{where}: unknown type {name!r}; {remedy}choose one of {', '.join(sorted(types))}")
    hints = get_type_hints(types[name])
    given = {n: v for n, v in saved.items() if n not in ("type", "from")}
    values = {n: from_json(v, hints.get(n), f"{where}.{n}") for n, v in given.items()}
    try:
        return types[name](**values)
    except (TypeError, ValueError) as error:
        raise PieceError(f"{where}: {error}") from error


def _members(cls: type) -> set[str]:
    """Return the public names that a class, and protocols that it derives from, define or annotate."""
    bases = [base for base in cls.__mro__ if base is not object]
    names = {name for base in bases for name in (*vars(base), *get_annotations(base))}
    return {name for name in names if not name.startswith("_")}


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"

"""Pieces: what may register itself, what JSON holds of it, and what comes back."""

import json
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Optional, Protocol

import commands
import pytest
import torch

from bimkern import pieces
from bimkern.pieces import PieceError


class Filter(Protocol):
    """A kind without members."""


@dataclass(frozen=True)
class Sub:
    value: int


@dataclass(frozen=True)
class Other:
    name: str


@pieces.register(Filter)
@dataclass(frozen=True, kw_only=True)
class Everything:
    old: Optional[Sub] = None  # noqa: UP045  # users write it
    new: Sub | None = None
    pair: tuple[Sub, Other] | None = None
    many: tuple[Sub, ...] = ()
    nested: tuple[tuple[int, int], ...] = ()
    numbers: list[int] = field(default_factory=list)
    by_name: dict[str, tuple[int, ...]] = field(default_factory=dict)
    path: Path | None = None
    anything: Any = None


@pieces.register(Filter)
@dataclass(frozen=True)
class Computed:
    numbers: tuple[int, ...]
    total: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "total", sum(self.numbers))


def there_and_back(value):
    return pieces.from_json(json.loads(json.dumps(pieces.to_json(value))), Filter, "filter")


@pytest.mark.parametrize(
    "given",
    [
        {"old": Sub(1)},
        {"new": Sub(1)},
        {"pair": (Sub(1), Other("a"))},
        {"many": (Sub(1), Sub(2), Sub(3))},
        {"nested": ((1, 2), (3, 4))},
        {"numbers": [1, 2]},
        {"by_name": {"a": (1, 2), "type": (3,)}},
        {"path": Path("a/b")},
        {"anything": {"a": [1, {"b": None}], "c": True}},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_is_written_comes_back(given):
    assert there_and_back(Everything(**given)) == Everything(**given)


def test_what_a_piece_computes_is_computed_again():
    assert there_and_back(Computed((1, 2))) == Computed((1, 2))


def test_json_equals_what_is_read_back_from_a_file():
    """A resumed run compares the two."""
    written = pieces.to_json(Everything(anything={"a": (1, (2, 3))}))
    assert json.loads(json.dumps(written)) == written


def test_a_fixed_tuple_has_its_length():
    saved = pieces.to_json(Everything(pair=(Sub(1), Other("a"))))
    saved["pair"].append(saved["pair"][0])
    with pytest.raises(PieceError, match=r"filter\.pair: must hold 2 values, got 3"):
        pieces.from_json(saved, Filter, "filter")


@pytest.mark.parametrize(
    ("value", "where", "got"),
    [
        (torch.float32, "", "dtype"),
        ((1, {2}), r"\[1\]", "set"),
        ({"a": b""}, r"\['a'\]", "bytes"),
        ({1: "a"}, "", "dict"),
        (Sub(len), r"\.value", "builtin_function_or_method"),
    ],
    ids=lambda value: getattr(type(value), "__name__", ""),
)
def test_what_json_cannot_hold_is_named(value, where, got):
    with pytest.raises(PieceError, match=rf"^Everything\.anything{where}: a config holds numbers, .*, got {got}$"):
        pieces.to_json(Everything(anything=value))


def test_what_is_no_frozen_dataclass_cannot_be_found_by_name():
    class Plain:
        size: int = 3

    class Undecorated(Sub):
        size: int = 3

    for refused in (Plain, dataclass(type("Thawed", (), {})), Undecorated):
        with pytest.raises(TypeError, match=rf"^{refused.__name__} must be a frozen dataclass; write @dataclass"):
            pieces.register(Filter)(refused)
        assert refused.__name__ not in pieces.registered(Filter)


def test_a_field_must_not_take_the_place_of_what_json_says():
    taken = make_dataclass("Taken", [("type", int)], frozen=True)
    with pytest.raises(TypeError, match=r"^Taken must not have a field named type; rename it"):
        pieces.register(Filter)(taken)
    with pytest.raises(PieceError, match=r"^Everything\.anything: a field of Taken must not be named type"):
        pieces.to_json(Everything(anything=taken(3)))


SCRIPT = """
from dataclasses import dataclass
from bimkern import pieces

@dataclass(frozen=True)
class Mine: ...

if __name__ == "__main__":
    print(pieces.to_json(Mine())["from"])
"""


@pytest.mark.parametrize("arguments", [("script.py",), ("-m", "script")], ids=" ".join)
def test_a_piece_of_a_program_says_how_to_import_it(tmp_path, arguments):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, *arguments]
    done = commands.run(command, cwd=tmp_path, check=True)
    source = done.stdout.strip()
    assert source == ("script" if "-m" in arguments else str(tmp_path.resolve() / "script.py"))
    named = source if "-m" in arguments else f"the file {source}"
    with pytest.raises(
        PieceError, match=rf"unknown type 'Mine'; import {named}, which defines it, first \(.*\); or choose"
    ):
        pieces.from_json({"type": "Mine", "from": source}, Filter, "filter")

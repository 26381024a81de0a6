"""Annotations: which values they allow, and how text is read as them."""

from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from bimkern.annotations import choices, describe, single, single_from_text


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "6", 6),
        (int | None, "none", None),
        (Optional[float], "None", None),  # noqa: UP045  # users write it
        (float, "1", 1.0),
        (float, "1e-3", 0.001),
        (int | float, "1", 1),
        (bool, "True", True),
        (bool, "false", False),
        (str, "6", "6"),
        (str | None, "none", None),
        (Path | None, "a/b", Path("a/b")),
        (Literal["l1", "l2"], "l2", "l2"),
        (Literal[4, 8], "8", 8),
        (Any, "6", "6"),
    ],
    ids=str,
)
def test_text_is_read_as_the_annotation_asks(hint, text, value):
    found = single_from_text(text, choices(hint))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (int, 1.0, "an integer"),
        (int, True, "an integer"),
        (int | None, "six", "an integer or none"),
        (float, False, "a number"),
        (float, None, "a number"),
        (bool, 1, "true or false"),
        (str, 1, "text"),
        (Path, 1, "a path"),
        (Literal["l1", "l2"], "l3", "one of l1, l2"),
        (tuple[float, float], 1.0, "2 values, each a number"),
        (tuple[int, ...] | None, 1, "values, each an integer or none"),
        (list[str], "a", "values, each text"),
    ],
    ids=str,
)
def test_what_is_not_allowed_is_refused_and_said_in_words(hint, value, words):
    with pytest.raises(ValueError, match="no choice allows"):
        single(value, choices(hint))
    assert describe(hint) == words


def test_values_of_programs_are_as_the_annotation_has_them():
    assert [single(3, (float,)), single("a", (Path,)), single(3, (int, float))] == [3.0, Path("a"), 3]
    assert type(single(3, (float,))) is float

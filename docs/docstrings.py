"""Sphinx extension: what the docstrings and dataclasses of this code base say, as reStructuredText.

`Same as:` and `Source:` become fields, and the comment behind a field of a dataclass or named tuple its description.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from sphinx.application import Sphinx

_FIELD = re.compile(r"(Same as|Source): ")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", _fields_from_paragraphs, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _add_commented_fields, priority=600)
    app.connect("autodoc-skip-member", _skip_bare_fields)
    return {"parallel_read_safe": True}


def _fields_from_paragraphs(_app: Sphinx, _what: str, _name: str, _item: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = [_FIELD.sub(r":\1: ", line) if _FIELD.match(line) else line for line in lines]


def _add_commented_fields(_app: Sphinx, what: str, _name: str, item: Any, _options: Any, lines: list[str]) -> None:
    if what != "class" or not (is_dataclass(item) or hasattr(item, "_fields")):
        return
    entries = [f":ivar {name}: {comment}" for name, comment in _commented_fields(item)]
    if entries:
        lines += ["", *entries, ""]


def _skip_bare_fields(_app: Sphinx, _what: str, _name: str, item: Any, _skip: bool, _options: Any) -> bool | None:
    """Skip what a named tuple says of its fields by itself."""
    return True if (getattr(item, "__doc__", None) or "").startswith("Alias for field number") else None


def _commented_fields(item: type) -> Iterator[tuple[str, str]]:
    """Yield the fields of a class that have a comment behind them."""
    source = textwrap.dedent(inspect.getsource(item))
    lines = source.splitlines()
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            _, _, comment = lines[node.lineno - 1].partition("  # ")
            if comment:
                yield node.target.id, comment

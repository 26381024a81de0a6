"""The stub of the compiled arena has the names and signatures of the module."""

import inspect
import re
from pathlib import Path

import pytest

from bimkern.arena._native import native

STUB = Path(__file__).parents[2] / "bimkern" / "arena" / "_arena.pyi"
_SPELLINGS = {  # of pybind11 releases
    "typing.SupportsInt | typing.SupportsIndex": "int",
    "typing.SupportsInt": "int",
    "collections.abc.Sequence": "list",
    "bimkern.arena._arena.": "",
    "bimkern::": "",
    "dict[str, int]": "dict",
    " | None": "",
}


@pytest.fixture(scope="module")
def stub():
    names = {}
    exec(compile(STUB.read_text(), STUB, "exec"), names)
    return names


def public(names):
    return {name for name in names if not name.startswith("_") and name != "Sequence"}


def spelled_alike(annotation):
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    for spelling, plain in _SPELLINGS.items():
        text = text.replace(spelling, plain)
    return text.replace("NoneType", "None")


def in_stub(function):
    """Return types, which of them have defaults, and what is returned."""
    signature = inspect.signature(function)
    parameters = [p for name, p in signature.parameters.items() if name != "self"]
    types = [spelled_alike(p.annotation) for p in parameters]
    return types, [p.default is not p.empty for p in parameters], spelled_alike(signature.return_annotation)


def in_module(function):
    """The same from the line that pybind11 writes: name(self: A, arg0: B, named: C = 1) -> D."""
    inside, returned = re.match(r"\w+\((.*)\) -> (.*)", function.__doc__).groups()
    parameters = re.split(r", (?=\w+: )", inside) if inside else []
    parts = [re.fullmatch(r"(\w+): (.*?)( = .*)?", parameter).groups() for parameter in parameters]
    parts = [part for part in parts if part[0] != "self"]
    return [spelled_alike(part[1]) for part in parts], [part[2] is not None for part in parts], spelled_alike(returned)


def test_the_module_has_what_the_stub_names(stub):
    assert public(stub) | public(stub["__annotations__"]) == public(dir(native()))
    for name, kind in stub["__annotations__"].items():
        assert isinstance(getattr(native(), name), kind)


@pytest.mark.parametrize("name", ["make_plan", "check_plan", "claim_device", "device_bytes"])
def test_functions_have_the_signatures_of_the_stub(stub, name):
    assert in_module(getattr(native(), name)) == in_stub(stub[name])


@pytest.mark.parametrize("name", ["HostArena", "DeviceArena", "Rerun"])
def test_methods_have_the_signatures_of_the_stub(stub, name):
    compiled, written = getattr(native(), name), stub[name]
    assert public(dir(compiled)) == public(dir(written))
    for method in {"__init__", *public(dir(written))}:
        assert in_module(getattr(compiled, method)) == in_stub(getattr(written, method)), method

import logging
import sys

import pytest

from bimkern import optional


def test_what_is_loaded_leaves_logging_alone(monkeypatch):
    """Every training step asks for timm, and other threads may warn meanwhile."""
    first = optional.load("json")
    monkeypatch.setattr(logging, "disable", lambda level: pytest.fail("warnings are kept back"))
    assert optional.load("json") is first


def test_what_python_may_not_find_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(optional.Unusable, match=r"^not installed$"):
        optional.load("timm")

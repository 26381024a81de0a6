"""A folder of photographs that other sources are made of, and addresses that are tried again at once."""

import pytest
from source_forms import write_folder

from bimkern.data.sources import remote_files


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "photos")


@pytest.fixture
def without_pauses(monkeypatch, tmp_path):
    monkeypatch.setattr(remote_files, "_PAUSES", (0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

"""Files are dropped from memory, or it is said that they are not."""

import os

import pytest
import torch

from bench import page_cache
from bench.entries import cold_sources
from bench.entry import ENTRIES
from bench.page_cache import NotDropped, drop
from bench.runner import prepare


def test_a_dropped_file_is_not_in_memory(tmp_path):
    (tmp_path / "x").write_bytes(bytes(100_000))
    try:
        drop([tmp_path / "x"])
    except NotDropped as reason:
        pytest.skip(f"{reason}")
    with (tmp_path / "x").open("rb") as file:
        assert not page_cache._is_cached(file.fileno())
        assert not page_cache._is_cached(file.fileno())
        assert file.read() == bytes(100_000)
        assert page_cache._is_cached(file.fileno())


def test_where_nothing_is_dropped_there_is_no_case_and_a_reason(tmp_path, monkeypatch, capsys):
    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: None)
    (tmp_path / "x").read_bytes()
    with pytest.raises(NotDropped, match="is kept in memory"):
        drop([tmp_path / "x"])
    assert list(cold_sources.cases(torch.device("cpu"), quick=True)) == []
    assert "cold_sources: left out, as files cannot be dropped from memory: " in capsys.readouterr().err


def test_shards_and_folder_read_as_many_files(monkeypatch):
    monkeypatch.setattr(page_cache, "_is_cached", lambda descriptor: False)
    monkeypatch.setattr("bench.entries.loaders._COPIES", 1)
    for case in cold_sources.cases(torch.device("cpu"), quick=True):
        measure, runs = prepare(ENTRIES["cold_sources"], case)
        assert set(runs) == set(measure.before) == {"shards", "folder"}
        for name, run in runs.items():
            measure.before[name]()
            assert len(run()) == 8

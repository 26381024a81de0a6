"""Files that replace others: a power cut cannot be had, so the calls are recorded, in their order."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from bimkern.files import atomic, jsonl


def test_a_file_is_on_the_disk_before_it_replaces_another_and_the_name_after(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    path = tmp_path / "config.json"

    def recorded_fsync(descriptor):
        synced = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append((synced, synced.read_text() if synced.is_file() else os.listdir(synced)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", lambda source, target: calls.append("replace") or replace(source, target))
    path.write_text("old")
    with atomic.replaced(path) as scratch:
        scratch.write_text("new")
    assert calls == [(scratch, "new"), "replace", (tmp_path, ["config.json"])]


def test_a_folder_that_fails_leaves_the_one_before_and_nothing_else(tmp_path):
    path = tmp_path / "made"
    for content in ("old", "new"):
        with suppress(ZeroDivisionError), atomic.replaced_folder(path) as scratch:
            (scratch / "file").write_text(content)
            assert atomic.is_scratch(scratch)
            assert content == "old" or 1 / 0
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_processes_that_create_a_folder_one_is_first_and_both_succeed(tmp_path):
    path = tmp_path / "cache" / "made"
    with atomic.created_folder(path) as late:
        with atomic.created_folder(path) as early:
            (early / "file").write_text("content")
        (late / "file").write_text("content")
    assert (path / "file").read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "made").write_text("a file in the way")
    with pytest.raises(OSError, match="Not a directory"), atomic.created_folder(tmp_path / "made"):
        pass


def test_lines_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "records.jsonl"
    jsonl.write(path, [{"a": 1}, {"b": 2}])
    with pytest.raises(TypeError):
        jsonl.write(path, [{"a": 3}, {"b": object()}])
    assert jsonl.read(path) == [{"a": 1}, {"b": 2}]
    assert list(tmp_path.iterdir()) == [path]

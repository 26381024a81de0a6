"""Files that replace others: a power cut cannot be had, so the calls are recorded, in their order."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
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


def test_processes_that_replace_one_file_at_once_leave_each_others_alone(tmp_path):
    path = tmp_path / "cache.columns"
    with atomic.replaced(path) as slow:
        slow.write_text("slow")
        with atomic.replaced(path) as quick:
            quick.write_text("quick")
        assert path.read_text() == "quick"
        with suppress(ZeroDivisionError), atomic.replaced(path) as failing:
            failing.write_text("failing")
            assert len({slow, quick, failing}) == 3
            assert all(map(atomic.is_scratch, (slow, quick, failing)))
            assert 1 / 0
    assert path.read_text() == "slow"
    assert list(tmp_path.iterdir()) == [path]


def test_many_that_replace_one_file_at_once_succeed_with_whole_files(tmp_path):
    path = tmp_path / "cache.columns"

    def replace(i):
        with atomic.replaced(path) as scratch:
            scratch.write_text(f"{i}" * 1000)
        assert len(set(path.read_text())) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(replace, [i % 10 for i in range(100)]))
    assert list(tmp_path.iterdir()) == [path]


def test_killed_processes_leave_one_temporary_file_which_the_next_one_takes(tmp_path):
    path = tmp_path / "cache.columns"
    for _ in range(2):
        killed = os.fork()
        if killed == 0:
            with atomic.replaced(path) as scratch:
                scratch.write_text("half")
                os._exit(9)
        os.waitpid(killed, 0)
        assert list(tmp_path.iterdir()) == [tmp_path / ".writing-cache.columns"]
    with atomic.replaced(path) as scratch:
        assert scratch.read_text() == ""
        scratch.write_text("whole")
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_locked_files_are_replaced_too(tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with atomic.replaced(tmp_path / "a") as scratch:
        scratch.write_text("content")
    assert (tmp_path / "a").read_text() == "content"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


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

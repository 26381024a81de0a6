"""Files that replace others: a power cut cannot be had, so the calls are recorded, in their order."""

import os
from pathlib import Path

from bimkern.files import atomic


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

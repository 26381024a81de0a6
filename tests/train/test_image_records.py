"""images.jsonl: it is what json writes, and is parsed only where it is not what is known already."""

import json
import os

import numpy as np
import pytest

from bimkern.data.file_checks import FileCheck, FileChecks
from bimkern.data.held_out import are_held_out
from bimkern.train.run_folder import image_records
from bimkern.train.run_folder.image_records import read_records, write_records

NAMES = sorted(
    ["a.jpg", 'quo"te, ".png', "line\nbreak\t", os.fsdecode(b"caf\xe9"), "größe.png", "b\\c", "漢字", "x" * 300]
)


def found(names=NAMES, width=4):
    return FileChecks.of(
        {name: FileCheck(7, 8, f"{i:016x}", width, 2**31 + i, 6, True) for i, name in enumerate(names)}
    )


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("at_once", [3, 100])
def test_a_file_is_as_json_writes_it(tmp_path, monkeypatch, share, at_once):
    monkeypatch.setattr(image_records, "_AT_ONCE", at_once)
    images = found()
    write_records(tmp_path / "images.jsonl", images, share)
    expected = []
    for name, held_out in zip(NAMES, are_held_out(images.names, share), strict=True):
        one = images[name]
        record = {"file": name, "width": one.width, "height": one.height, "digest": one.digest}
        expected.append(json.dumps(record | ({"held_out": True} if held_out else {})) + "\n")
    assert (tmp_path / "images.jsonl").read_bytes() == "".join(expected).encode()
    assert ("held_out" in "".join(expected)) == (share > 0)
    monkeypatch.setattr(image_records.jsonl, "stream", None)  # what is known is not parsed
    assert read_records(tmp_path / "images.jsonl", images, share) is images


def test_other_records_are_read_and_torn_lines_left_out(tmp_path):
    path = tmp_path / "images.jsonl"
    write_records(path, found(), 0.0)
    for images in (found(NAMES[:-1]), found([*NAMES, "漢字字"]), found(width=5), found([])):
        records = read_records(path, images, 0.0)
        assert records.names == NAMES
        assert np.array_equal(records.sizes, found().sizes)
        assert np.array_equal(records.digests, found().digests)
        assert records.orientations.tolist() == [1] * len(NAMES)
        assert records.sound.all()
    path.write_bytes(path.read_bytes()[:-9])
    assert read_records(path, found(), 0.0).names == NAMES[:-1]
    path.write_bytes(b"")
    assert len(read_records(path, found(), 0.0)) == 0
    assert read_records(path, found([]), 0.0) == {}


def test_what_is_known_now_replaces_what_is_recorded():
    recorded = FileChecks.of({"a": FileCheck(width=1), "b": FileCheck(width=2), "c": FileCheck(width=3)})
    now = FileChecks.of({"a": FileCheck(width=9, orientation=6), "b": FileCheck(fault="bad"), "z": FileCheck(width=5)})
    both = recorded.updated(now)
    assert {file: (one.width, one.orientation) for file, one in both.items()} == {"a": (9, 6), "b": (2, 1), "c": (3, 1)}
    assert now.faults == {"b": "bad"}

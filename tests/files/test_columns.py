"""Columns come back as they were written, or not at all."""

import numpy as np
import pytest

from bimkern.files import columns
from bimkern.files.columns import Columns

ARRAYS = {
    "integers": np.arange(-3, 9).reshape(3, 4)[:, ::2],
    "big endian": np.arange(5, dtype=">u8"),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 2), dtype=np.int8),
    "scalar": np.array(3.5),
}


def test_they_come_back_as_they_were_written(tmp_path):
    for header in ({}, {"version": 3, "faults": [{"name": "größe\n"}]}):
        columns.write(tmp_path / "x", Columns(header, ARRAYS))
        found = columns.read(tmp_path / "x")
        assert found.header == header
        assert list(found.arrays) == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert found.arrays[name].dtype == array.dtype.newbyteorder("=")
            assert np.array_equal(found.arrays[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("at", [0, 15, 16, 40, -1])
def test_a_changed_byte_and_a_missing_one_are_noticed(tmp_path, at):
    columns.write(tmp_path / "x", Columns({"version": 3}, ARRAYS))
    sound = (tmp_path / "x").read_bytes()
    changed = bytearray(sound)
    changed[at] ^= 1
    for content in (bytes(changed), sound[:at], sound[1:], sound + b"\0", b""):
        (tmp_path / "x").write_bytes(content)
        assert columns.read(tmp_path / "x") is None
    assert columns.read(tmp_path / "missing") is None
    assert columns.read(tmp_path) is None

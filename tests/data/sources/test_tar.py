"""Tar files are read as tarfile reads them, whole ones and damaged ones."""

import os
import random
import shutil
import string
import tarfile

import numpy as np
import pytest
from source_forms import add

from bimkern.data.names import Names
from bimkern.data.sources.tar import BLOCK, DamagedHeader, _number, scan
from bimkern.data.sources.tar_index import read_index

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def listed(path):
    """Return name, offset and size of every member that we find, in the order of the file."""
    found = scan(path)
    names = Names(bytes(found.names), np.array(found.ends, dtype=np.int64))
    return list(zip(names, found.offsets, found.sizes, strict=True))


def as_tarfile_lists(path):
    with tarfile.open(path) as tar:
        return [(member.name, member.offset_data, member.size) for member in tar if member.isfile()]


def write(path, names, format=tarfile.GNU_FORMAT, **options):
    with tarfile.open(path, "w", format=format, **options) as tar:
        return [add(tar, name, name.encode("utf-8", "surrogateescape") * 40) for name in names]


def with_checksum(header):
    """Return a header with the checksum of what it says."""
    header = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def random_names(rng, longest):
    for _ in range(80):
        alphabet = string.ascii_letters + "_. -" + ("äß漢" if rng.random() < 0.3 else "")
        words = ("".join(rng.choices(alphabet, k=rng.randint(1, 30))).strip(" .") for _ in range(rng.randint(1, 8)))
        yield f"{rng.random()}/{'/'.join(word or 'x' for word in words)}"[:longest]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_members_are_those_of_tarfile(tmp_path, kind, seed):
    """Long names, folders, non-ASCII names and empty files, in every format."""
    rng = random.Random(seed)
    with tarfile.open(tmp_path / "x.tar", "w", format=FORMATS[kind]) as tar:
        for name in random_names(rng, 90 if kind == "ustar" else 300):
            add(tar, name, rng.randbytes(rng.choice([0, 1, 511, 512, 513, 20_000])))
            if rng.random() < 0.2:
                add(tar, f"{name}-folder", type=tarfile.DIRTYPE)
    ours = listed(tmp_path / "x.tar")
    assert ours == as_tarfile_lists(tmp_path / "x.tar")
    assert len(ours) == 80
    assert not scan(tmp_path / "x.tar").faults


def test_names_that_are_split_in_ustar_global_attributes_and_sizes_in_base_256(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "ü" * 600}) as tar:
        add(tar, "a/" * 60 + "x.jpg", b"1")
        add(tar, "b.jpg", b"22", pax_headers={"comment": "of it"})
    write(tmp_path / "y.tar", ["a/" * 70 + "x.jpg"], tarfile.USTAR_FORMAT)
    content = bytearray((tmp_path / "y.tar").read_bytes())
    content[124:136] = b"\x80" + listed(tmp_path / "y.tar")[0][2].to_bytes(11)
    content[:BLOCK] = with_checksum(content[:BLOCK])
    (tmp_path / "z.tar").write_bytes(content)
    for name in ("x.tar", "y.tar", "z.tar"):
        assert listed(tmp_path / name) == as_tarfile_lists(tmp_path / name) != []


def test_what_gnu_tar_writes(tmp_path):
    if shutil.which("tar") is None:
        pytest.skip("there is no tar here")
    (tmp_path / "in" / ("long" * 40)).mkdir(parents=True)
    for i in range(5):
        (tmp_path / "in" / ("long" * 40) / f"{i}.jpg").write_bytes(bytes(i * 300))
    for kind in ("gnu", "ustar", "pax", "v7", "oldgnu"):
        folder = "in" if kind in ("gnu", "pax", "oldgnu") else f"in/{'long' * 40}/0.jpg"
        out = tmp_path / f"{kind}.tar"
        if os.spawnlp(os.P_WAIT, "tar", "tar", f"--format={kind}", "-cf", out, "-C", tmp_path, folder) == 0:
            assert listed(out) == as_tarfile_lists(out)


def test_members_that_could_leave_the_archive_or_are_no_files_are_faults_with_their_offsets(tmp_path):
    """Nothing is ever written; they are not even read."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "good.jpg", b"1")
        at = {
            add(tar, "/etc/evil.jpg", b"2"): ("/etc/evil.jpg", "an absolute path"),
            add(tar, "a/../../evil.jpg", b"3"): ("a/../../evil.jpg", "a path with '..'"),
            add(tar, "soft.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"): ("soft.jpg", "a link, not a file"),
            add(tar, "hard.jpg", type=tarfile.LNKTYPE, linkname="good.jpg"): ("hard.jpg", "a link, not a file"),
            add(tar, "zero.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5): ("zero.jpg", "a device, not a file"),
            add(tar, "disk.jpg", type=tarfile.BLKTYPE): ("disk.jpg", "a device, not a file"),
            add(tar, "pipe.jpg", type=tarfile.FIFOTYPE): ("pipe.jpg", "a pipe, not a file"),
            add(tar, "odd.jpg", type=b"V"): ("odd.jpg", "of tar's type 'V', not a file"),
            add(tar, "./.", b"no name"): ("./.", "no name"),
        }
        add(tar, "./last.jpg", b"4")
    assert [name for name, *_ in listed(tmp_path / "x.tar")] == ["good.jpg", "last.jpg"]
    assert {fault.offset: (fault.name, fault.reason) for fault in scan(tmp_path / "x.tar").faults} == at


def test_a_sparse_file_is_a_fault(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "s.jpg", b"1", pax_headers={"GNU.sparse.major": "1"})
        add(tar, "good.jpg", b"1")
    assert [name for name, *_ in listed(tmp_path / "x.tar")] == ["good.jpg"]
    assert [fault.reason for fault in scan(tmp_path / "x.tar").faults] == ["a sparse file"]


@pytest.mark.parametrize("lost", [1, BLOCK, 3 * BLOCK + 7])
def test_of_a_truncated_file_the_members_before_are_found(tmp_path, lost):
    offsets = write(tmp_path / "x.tar", ["a.jpg", "b.jpg", "c" * 50 + ".jpg"])
    whole = listed(tmp_path / "x.tar")
    end = whole[-1][1] + whole[-1][2]
    os.truncate(tmp_path / "x.tar", end - lost)
    assert listed(tmp_path / "x.tar") == whole[:2]
    first = scan(tmp_path / "x.tar").faults[0]
    assert first.offset == offsets[2]
    assert first.reason.startswith(("truncated, or of a wrong size: 2160 bytes, ", "the file ends within a header"))


def test_a_file_without_an_end_marker_says_so_and_is_used(tmp_path):
    write(tmp_path / "x.tar", ["a.jpg", "b.jpg"])
    whole = listed(tmp_path / "x.tar")
    os.truncate(tmp_path / "x.tar", whole[-1][1] + BLOCK)
    assert listed(tmp_path / "x.tar") == whole
    (fault,) = scan(tmp_path / "x.tar").faults
    assert fault.reason == "it ends without an end marker; the file may be incomplete"
    assert fault.offset == whole[-1][1] + BLOCK


@pytest.mark.parametrize(
    ("at", "wrong", "reason"),
    [
        (124, b"77777777777\0", "truncated, or of a wrong size: 8589934591 bytes, "),
        (124, b"9x", "a header with a wrong checksum"),
        (148, b"??", "a header with an invalid number"),
        (0, b"\xff", "a header with a wrong checksum"),
    ],
    ids=["size", "digits", "checksum", "name"],
)
def test_behind_a_damaged_header_the_others_are_found(tmp_path, at, wrong, reason):
    offsets = write(tmp_path / "x.tar", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    whole = listed(tmp_path / "x.tar")
    content = bytearray((tmp_path / "x.tar").read_bytes())
    header = content[offsets[1] : offsets[1] + BLOCK]
    header[at : at + len(wrong)] = wrong
    if reason.startswith("truncated"):
        header = with_checksum(header)
    content[offsets[1] : offsets[1] + BLOCK] = header
    (tmp_path / "x.tar").write_bytes(content)
    assert listed(tmp_path / "x.tar") == [whole[0], *whole[2:]]
    (fault,) = scan(tmp_path / "x.tar").faults
    assert fault.offset == offsets[1]
    assert fault.reason.startswith(reason)


@pytest.mark.parametrize("digits", [b"-0000000001\0", b"-777\0", b"+7\0", b"0_7\0", b"0o7\0", b"9\0", b"\xff" * 12])
def test_a_number_that_is_not_octal_is_a_damaged_header(digits):
    """With a negative size, a scan would go backwards."""
    with pytest.raises(DamagedHeader, match="a header with an invalid number"):
        _number(digits)


@pytest.mark.parametrize("size", [b"-0000000001\0", b"-0000002000\0"])
def test_behind_a_negative_size_the_others_are_found(tmp_path, size):
    offsets = write(tmp_path / "x.tar", ["a.jpg", "b.jpg", "c.jpg"])
    whole = listed(tmp_path / "x.tar")
    content = (tmp_path / "x.tar").read_bytes()
    header = content[offsets[1] : offsets[1] + BLOCK]
    header = with_checksum(header[:124] + size + header[136:])
    (tmp_path / "x.tar").write_bytes(content[: offsets[1]] + header + content[offsets[1] + BLOCK :])
    assert listed(tmp_path / "x.tar") == [whole[0], whole[2]]
    (fault,) = scan(tmp_path / "x.tar").faults
    assert (fault.offset, fault.reason) == (offsets[1], "a header with an invalid number")


@pytest.mark.parametrize("record", [b"9" * 21 + b" size=1\n", b"32 size=" + b"1" * 23 + b"\n"], ids=["length", "size"])
def test_numbers_of_many_digits_in_extended_attributes_are_damage(tmp_path, record):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        at = add(tar, "attributes", record, type=tarfile.XHDTYPE)
        add(tar, "a.jpg", b"1")
        add(tar, "b.jpg", b"1")
    assert listed(tmp_path / "x.tar")[-1][0] == "b.jpg"
    fault = scan(tmp_path / "x.tar").faults[0]
    assert fault.offset in (at, at + 2 * BLOCK)
    assert fault.reason == "an invalid size in extended attributes"


def test_a_size_beyond_all_files_ends_the_scan(tmp_path):
    write(tmp_path / "x.tar", ["a.jpg"])
    content = (tmp_path / "x.tar").read_bytes()
    size = b"\x80" + (1 << 80).to_bytes(11)
    header = with_checksum(content[:124] + size + content[136:156] + b"V" + content[157:BLOCK])
    (tmp_path / "x.tar").write_bytes(header + content[BLOCK:])
    assert listed(tmp_path / "x.tar") == []
    assert scan(tmp_path / "x.tar").faults[0].reason == "of tar's type 'V', not a file"


def test_random_damage_never_gives_a_member_that_lies_outside(tmp_path):
    write(tmp_path / "x.tar", [f"{i}.jpg" for i in range(20)], tarfile.PAX_FORMAT)
    rng, sound = random.Random(0), (tmp_path / "x.tar").read_bytes()
    for _ in range(150):
        content = bytearray(sound)
        for _ in range(rng.randint(1, 20)):
            at = rng.randrange(len(content))
            content[at : at + rng.randint(1, 40)] = rng.randbytes(rng.randint(1, 40))
        (tmp_path / "y.tar").write_bytes(content[: rng.randrange(1, len(content))])
        size = (tmp_path / "y.tar").stat().st_size
        for name, offset, length in listed(tmp_path / "y.tar"):
            assert ".." not in name.split("/")
            assert BLOCK <= offset <= offset + length <= size


def test_an_empty_file_and_noise_have_no_members(tmp_path):
    for content in (b"", bytes(10 * BLOCK), os.urandom(5000)):
        (tmp_path / "x.tar").write_bytes(content)
        assert listed(tmp_path / "x.tar") == []


def test_of_members_of_one_name_the_first_is_used_and_the_others_are_faults(tmp_path):
    write(tmp_path / "x.tar", ["b.jpg", "a.jpg", "b.jpg"])
    (_, first, _), _, (_, again, _) = listed(tmp_path / "x.tar")
    index = read_index(tmp_path / "x.tar")
    assert list(index.names) == ["a.jpg", "b.jpg"]
    assert index.offsets[1] == first
    (fault,) = index.faults
    assert (fault.offset, fault.name) == (again, "b.jpg")
    assert fault.reason == f"of the same name as the member whose content begins at {first}"


def test_an_index_is_made_once_and_made_again_when_the_file_or_the_index_changes(tmp_path, monkeypatch):
    path, scans = tmp_path / "x.tar", []
    monkeypatch.setattr("bimkern.data.sources.tar_index.scan", lambda path: scans.append(path) or scan(path))
    write(path, ["b.jpg", "a.jpg"])
    for _ in range(2):
        assert list(read_index(path).names) == ["a.jpg", "b.jpg"]
    assert len(scans) == 1
    stored = tmp_path / ".x.tar.index"
    content = stored.read_bytes()
    for i in (0, 20, len(content) - 1):
        stored.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        assert list(read_index(path).names) == ["a.jpg", "b.jpg"]
    stored.write_bytes(content[:30])
    read_index(path)
    assert len(scans) == 5
    write(path, ["c.jpg"])
    assert list(read_index(path).names) == ["c.jpg"]


def test_where_the_folder_is_read_only_the_index_is_kept_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "x.tar", ["a.jpg"])
    (tmp_path / "in" / ".writing-.x.tar.index").mkdir()  # where it would be written; root may write anywhere
    scans = []
    monkeypatch.setattr("bimkern.data.sources.tar_index.scan", lambda path: scans.append(path) or scan(path))
    for _ in range(2):
        assert list(read_index(tmp_path / "in" / "x.tar").names) == ["a.jpg"]
    assert len(scans) == 1
    assert len(list((tmp_path / "cache").rglob("*.index"))) == 1

"""What control groups leave of memory, in folders as Linux lays them out."""

import pytest

from bimkern.train.memory.cgroup import room

V1, V2 = "cgroup", "cgroup2"
UNLIMITED_V1 = 9223372036854771712


@pytest.fixture
def linux(tmp_path):
    """Write the folder of a process and its groups, by folder: their limit, what they use and what is cached."""

    def write(kind, path, groups, *, root="/", controllers="cpu,memory"):
        mounted = tmp_path / "mounted"
        names = {V1: ("limit_in_bytes", "usage_in_bytes", "total_"), V2: ("max", "current", "")}[kind]
        for folder, (limit, used, cached) in groups.items():
            (mounted / folder).mkdir(parents=True, exist_ok=True)
            for name, value in zip(names, (limit, used), strict=False):
                (mounted / folder / f"memory.{name}").write_text(f"{value}\n")
            stat = f"anon 500\ninactive_file 7\n{names[2]}inactive_file {cached}\n"
            (mounted / folder / "memory.stat").write_text(stat)
        process = tmp_path / "process"
        process.mkdir()
        line = f"0::{path}" if kind == V2 else f"4:{controllers}:{path}"
        (process / "cgroup").write_text(f"9:name=systemd:/elsewhere\n{line}\n")
        (process / "mountinfo").write_text(
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
            f"35 31 0:32 {root} {mounted} rw,relatime shared:9 - {kind} {kind} rw,{controllers}\n"
        )
        return process

    return write


@pytest.mark.parametrize("kind", [V1, V2])
@pytest.mark.parametrize(
    ("group", "left"),
    [((1000, 900, 300), 400), ((1000, 2000, 300), 0), ((UNLIMITED_V1, 900, 300), None), (("max", 900, 300), None)],
)
def test_what_cached_files_hold_is_left(linux, kind, group, left):
    assert room(linux(kind, "/", {"": group})) == left


@pytest.mark.parametrize("kind", [V1, V2])
@pytest.mark.parametrize(
    ("groups", "left"),
    [
        ({"slurm/job_7": (1000, 100, 0), "slurm": (5000, 3000, 0), "": (9000, 3000, 0)}, 900),
        ({"slurm/job_7": (1000, 100, 0), "slurm": (5000, 4500, 0)}, 500),
        ({"slurm": (5000, 4500, 0), "other": (1, 0, 0)}, 500),
        ({"slurm/job_7/step_0": (1, 0, 0), "slurm/job_7": (1000, 100, 0)}, 900),
    ],
)
def test_every_group_above_counts(linux, kind, groups, left):
    assert room(linux(kind, "/slurm/job_7", groups)) == left


@pytest.mark.parametrize("kind", [V1, V2])
@pytest.mark.parametrize("root", ["/docker/7", "/docker"])
def test_a_container_sees_its_group_at_the_mount(linux, kind, root):
    """As its root, or, where it has its own /proc, under another path than the one that is said."""
    assert room(linux(kind, "/docker/7", {"": (1000, 100, 0)}, root=root)) == 900


def test_a_container_may_not_see_its_own_path(linux):
    assert room(linux(V2, "/", {"": (1000, 100, 0)}, root="/docker/7")) == 900


def test_a_mount_without_memory_has_no_limit(linux):
    assert room(linux(V1, "/", {"": (1000, 100, 0)}, controllers="cpu")) is None


def test_the_root_of_v2_has_no_files(linux):
    assert room(linux(V2, "/user.slice", {"user.slice": (1000, 100, 0)})) == 900


@pytest.mark.parametrize("text", [None, "", "no such lines\n"])
def test_another_system_has_no_limit(tmp_path, text):
    if text is not None:
        for name in ("cgroup", "mountinfo"):
            (tmp_path / name).write_text(text)
    assert room(tmp_path) is None


def test_v1_may_stand_beside_a_v2_that_counts_no_memory(linux, tmp_path):
    process = linux(V1, "/job", {"job": (1000, 100, 0)})
    with (process / "cgroup").open("a") as file:
        file.write("0::/\n")
    with (process / "mountinfo").open("a") as file:
        file.write(f"41 31 0:38 / {tmp_path / 'unified'} rw,relatime - cgroup2 cgroup2 rw\n")
    assert room(process) == 900


@pytest.mark.parametrize("kind", [V1, V2])
def test_a_mounted_group_of_another_process_does_not_count(linux, tmp_path, kind):
    process, other = linux(kind, "/user.slice", {"user.slice": (1000, 100, 0)}), tmp_path / "other"
    other.mkdir()
    for file in (tmp_path / "mounted/user.slice").iterdir():
        (other / file.name).write_text(file.read_text().replace("1000", "110"))
    with (process / "mountinfo").open("a") as file:
        file.write(f"99 31 0:38 /machine/c1 {other} rw,relatime - {kind} {kind} rw,memory\n")
    assert room(process) == 900


@pytest.mark.parametrize("kind", [V1, V2])
def test_mounts_may_have_any_name(linux, tmp_path, kind):
    process = linux(kind, "/", {"": (1000, 100, 0)})
    (tmp_path / "mounted").rename(tmp_path / "of two words")
    file = process / "mountinfo"
    other = b"50 31 0:40 / /mnt/caf\xe9 rw,relatime - ext4 /dev/sdb rw\n"
    file.write_bytes(other + file.read_bytes().replace(b"mounted", rb"of\040two\040words"))
    assert room(process) == 900

"""Runs on images in other forms: the same numbers, also after a kill, and a run that resumes in another form."""

import signal
import tarfile
from pathlib import Path

import pytest
from http_folder import served
from interop import import_or_skip
from killed_runs import FOLDER, KILLED_AT, LAST, killed_runs, train
from rank_processes import RankProcesses
from row_forms import named, write, write_pngs
from source_forms import add, files_of, write_folder, write_tars

from bimkern.data.packing import pack
from bimkern.data.repack import Repacking
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.files import jsonl

ROWS = (".npy", ".npz", "compressed.npz", ".h5", ".lmdb", ".parquet")
FORMS = (
    "folder",
    "list.txt",
    "tars",
    "packed",
    "save_to_disk",
    "http",
    "own",
    *ROWS,
    "tars at an address",
    "table at an address",
)


def losses(out):
    return [(record["step"], record["loss_per_stage"]) for record in jsonl.read(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_pngs(tmp_path_factory.mktemp("forms") / "photos")


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """The losses of a run on the folder that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(photos, out)
    assert len(losses(out)) == LAST
    return losses(out)


def written(photos, form, server):
    """Write the images of a folder in another form, beside it; return what --data names."""
    path = photos.parent / form
    if form == "list.txt":
        path.write_text("".join(f"photos/{file.name}\n" for file in files_of(photos)))
    elif form == "tars":
        write_tars(photos, path)
    elif form == "packed":
        pack(ImageFolder(paths=(photos,)), path, Repacking(keep=True), shard_images=5, workers=0, max_bad_ratio=0)
    elif form == "save_to_disk":
        datasets = import_or_skip("datasets")
        rows = {"image": [str(file) for file in files_of(photos)]}
        datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image()})).save_to_disk(
            path, num_shards=2
        )
    elif form == "http" or form.endswith("at an address"):
        import_or_skip("aiohttp")
        names = {"tars at an address": "tars/part-{0000..0002}.tar", "table at an address": "x.parquet"}
        return f"{server.url}/{names.get(form, 'photos')}"
    elif form == "own":
        return "killed_runs:Numbered"
    elif form in ROWS:
        return write(photos, named(photos.parent, form))
    return photos if form == "folder" else path


@pytest.fixture(scope="module")
def killed(photos, tmp_path_factory):
    """What --data names and the run folder of each form on which a run was killed; why, where there is none."""
    folder, found = tmp_path_factory.mktemp("killed"), {}
    with served(photos.parent) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(photos))
        for form in FORMS:
            try:
                found[form] = (str(written(photos, form, server)), str(folder / form))
            except pytest.skip.Exception as reason:
                found[form] = reason
        runs = {form: one for form, one in found.items() if isinstance(one, tuple)}
        process = RankProcesses(killed_runs, 1, folder / "output", list(runs.values()), variables={FOLDER: str(photos)})
        (codes,) = process.results()
        assert dict(zip(runs, codes, strict=True)) == dict.fromkeys(runs, -signal.SIGKILL), process.stderr()
        yield found


@pytest.mark.parametrize("form", FORMS)
def test_a_run_that_was_killed_in_mid_epoch_resumes_on_every_source_as_if_it_had_not_been(whole, killed, form):
    if not isinstance(killed[form], tuple):
        raise killed[form]
    data, out = killed[form][0], Path(killed[form][1])
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{KILLED_AT - 1:08d}"]
    train(data, out, on_step=(steps := []).append)
    assert steps == list(range(KILLED_AT, LAST + 1))
    assert losses(out) == whole


def test_a_run_that_was_stopped_resumes_on_files_in_memory_as_if_it_had_not_been(photos, whole, tmp_path):
    """A file system that no other process sees."""
    files = import_or_skip("fsspec").filesystem("memory")
    for path in files_of(photos):
        files.pipe(f"/resumed/{path.name}", path.read_bytes())
    try:
        train("memory://resumed", tmp_path / "run", KILLED_AT)
        train("memory://resumed", tmp_path / "run", on_step=(steps := []).append)
    finally:
        files.rm("/resumed", recursive=True)
    assert steps == list(range(KILLED_AT, LAST + 1))
    assert losses(tmp_path / "run") == whole


def test_a_run_on_shards_is_the_run_on_their_folder_also_when_it_resumes_in_mid_epoch(tmp_path):
    root = write_folder(tmp_path / "photos")
    shards = write_tars(root, tmp_path / "shards")
    pattern = tmp_path / "shards" / "part-{0000..0002}.tar"
    train(root, tmp_path / "folder")
    for first, second, out in ((pattern, shards, tmp_path / "shard_run"), (root, pattern, tmp_path / "moved")):
        train(first, out, KILLED_AT)
        train(second, out)
        assert losses(out) == losses(tmp_path / "folder") != []
        assert (out / "images.jsonl").read_bytes() == (tmp_path / "folder" / "images.jsonl").read_bytes()


def test_every_damaged_part_of_a_shard_is_recorded(tmp_path, capsys):
    root = write_folder(tmp_path / "photos")
    (shard,) = write_tars(root, tmp_path / "shards", count=1)
    with tarfile.open(shard, "a") as tar:
        offsets = [add(tar, f"../{i}.jpg", b"content") for i in range(6)]
    for _ in range(2):  # once, however often it is started
        train(shard, tmp_path / "run", last=1)
        assert "; 1 non-image files skipped (1 .txt); damaged parts left out: 6; steps: " in capsys.readouterr().out
        records = jsonl.read(tmp_path / "run" / "quarantine.jsonl")
        parts = {f"part-0000.tar, offset {offset}: ../{i}.jpg": "a path with '..'" for i, offset in enumerate(offsets)}
        assert {record["part"]: record["reason"] for record in records if "part" in record} == parts
        (note,) = (record for record in records if "suffix" in record)
        assert note["examples"] == ["ant/note.txt"]
        assert len(records) == 7

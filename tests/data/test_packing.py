"""A packed set gives what its source gives, or its images made smaller, and is made once, whatever interrupts it."""

import errno
import hashlib
import json
import os
import signal
from io import BytesIO

import numpy as np
import pytest
from bad_files import encoded, picture, write_bad_files
from checked import labels_by_file
from disk import full_disk
from image_kinds import exif
from PIL import Image
from source_forms import batches_of, data_of, files_of, same, write_folder, write_tars
from spectral import smooth_levels

from bimkern.data.decoding import Decoding
from bimkern.data.labels import read_labels
from bimkern.data.listing import list_images
from bimkern.data.pack_manifest import MANIFEST, PackError
from bimkern.data.packed_names import PackedNames
from bimkern.data.packing import PackingFailed, pack
from bimkern.data.pil import PilLoader
from bimkern.data.repack import Repacking, repack
from bimkern.data.source import SourceError, open_in
from bimkern.data.sources.find import find_source
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.sources.shards import ImageShards
from bimkern.files.lock import locked

KEEP = Repacking(keep=True)
LOADER = PilLoader(workers=0)


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "photos")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "packed"


def pack_into(out, data, how=KEEP, **changes):
    options = {"shard_images": 5, "workers": 0, "max_bad_ratio": 0.1} | changes
    return pack(find_source(data), out, how, **options)


def shards_of(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("shards-*.tar"))}


def images_of(root):
    return [file for file in files_of(root) if file.suffix != ".txt"]


def labels_of(data):
    source = find_source(data)
    return labels_by_file(read_labels(source, list_images(source).files))


def image_in(source, file):
    with open_in(source, file) as opened:
        return Image.open(BytesIO(opened.read()))


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_files_give_the_batches_of_the_folder_bit_for_bit(root, out, workers):
    manifest = pack_into(out, root, workers=workers)
    assert (manifest.images, len(manifest.shards), manifest.complete) == (12, 3, True)
    source, folder = find_source(out), ImageFolder(paths=(root,))
    assert isinstance(source, ImageShards)
    assert list_images(source).files == list_images(folder).files
    assert same(batches_of(LOADER, data_of(source)), batches_of(LOADER, data_of(folder)))
    assert labels_of(out) == labels_of(root)


def test_shards_come_with_the_index_that_a_run_would_make(root, out):
    pack_into(out, root)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {path.name for path in before} == {
        *(name for i in range(3) for name in (f"shards-00000{i}.tar", f".shards-00000{i}.tar.index")),
        MANIFEST,
        ".lock",
    }
    list_images(find_source(out))
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_the_manifest_has_the_checksums_of_the_shards(root, out):
    pack_into(out, root)
    manifest = json.loads((out / MANIFEST).read_text())
    assert {one["name"]: one["sha256"] for one in manifest["shards"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in shards_of(out).items()
    }
    assert manifest["images"] == sum(one["images"] for one in manifest["shards"]) == 12
    assert manifest["bytes"] == sum(map(len, shards_of(out).values()))


@pytest.mark.parametrize(("side", "size"), [("shortest", (80, 60)), ("longest", (60, 45))])
def test_images_are_shrunk_to_a_side_and_turned_upright(tmp_path, out, side, size):
    photo = Image.fromarray(smooth_levels(160, 120, channels=3))
    (tmp_path / "photos").mkdir()
    photo.save(tmp_path / "photos" / "a.png")
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photos" / "b.jpg", exif=exif(6), quality=95)
    pack_into(out, tmp_path / "photos", Repacking(size=60, side=side, quality=95))
    source = find_source(out)
    assert list_images(source).files == ("a.jpg", "b.jpg")
    expected = np.asarray(photo.resize(size, Image.Resampling.BICUBIC), dtype=int)
    for file in ("a.jpg", "b.jpg"):
        image = image_in(source, file)
        assert image.getexif().get(0x0112) is None
        assert np.abs(np.asarray(image, dtype=int) - expected).mean() < 3


def test_large_jpegs_are_decoded_at_reduced_size_with_little_difference():
    photo = Image.fromarray(smooth_levels(800, 640, channels=3))
    ours = Image.open(BytesIO(repack(encoded("JPEG", photo, quality=95), Repacking(size=80, quality=95)).content))
    full = photo.resize((100, 80), Image.Resampling.BICUBIC)
    assert ours.size == full.size
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(full, dtype=int)).mean() < 2


def test_small_images_are_never_enlarged_and_small_jpegs_are_copied(root, out):
    pack_into(out, root, Repacking(size=24))
    source = find_source(out)
    for file in images_of(root):
        name = file.relative_to(root)
        assert image_in(source, name.with_suffix(".jpg").as_posix()).size == Image.open(file).size
        if file.suffix == ".jpg":
            with open_in(source, name.as_posix()) as opened:
                assert opened.read() == file.read_bytes()


def killed_pack(out, root, after, how):
    """Pack in a process that is killed after so many images."""

    def kill(done, total):
        if done == after:
            os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if process == 0:
        pack_into(out, root, how, workers=1, progress=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def test_a_shard_that_was_damaged_meanwhile_is_made_again(root, out):
    """Its size is that of the manifest, its digest is not."""
    pack_into(out, root, KEEP)
    shard = out / "shards-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    done = []
    pack_into(out, root, KEEP, progress=lambda *numbers: done.append(numbers))
    assert done[-1] == (5, 5)
    assert shard.read_bytes() == whole


def test_a_shard_that_cannot_be_read_is_made_again(root, out, monkeypatch):
    pack_into(out, root, KEEP)
    plain, done = hashlib.file_digest, []

    def bad_sector(file, digest):
        if file.name.endswith("shards-000001.tar"):
            raise OSError(errno.EIO, "Input/output error")
        return plain(file, digest)

    monkeypatch.setattr(hashlib, "file_digest", bad_sector)
    pack_into(out, root, KEEP, progress=lambda *numbers: done.append(numbers))
    assert done[-1] == (5, 5)


@pytest.mark.parametrize("how", [KEEP, Repacking(size=16)], ids=["keep", "shrink"])
def test_a_killed_pack_keeps_whole_shards_and_ends_as_an_undisturbed_one(root, tmp_path, out, how):
    pack_into(tmp_path / "undisturbed", root, how)
    killed_pack(out, root, 7, how)
    assert list(shards_of(out)) == ["shards-000000.tar"]
    assert not json.loads((out / MANIFEST).read_text())["complete"]
    first = (out / "shards-000000.tar").stat()
    done = []
    manifest = pack_into(out, root, how, progress=lambda *numbers: done.append(numbers))
    assert done[-1] == (7, 7)  # the other five are there
    assert (out / "shards-000000.tar").stat() == first
    assert manifest.complete
    assert shards_of(out) == shards_of(tmp_path / "undisturbed")
    assert not list(out.glob(".writing-*"))


def test_of_a_complete_set_only_what_is_missing_or_of_another_size_is_made_again(root, out):
    pack_into(out, root)
    before = shards_of(out)
    (out / "shards-000001.tar").unlink()
    os.truncate(out / "shards-000002.tar", 100)
    done = []
    pack_into(out, root, progress=lambda *numbers: done.append(numbers))
    assert done[-1] == (7, 7)
    assert shards_of(out) == before


def test_a_folder_of_other_options_images_or_files_is_refused(root, out, tmp_path):
    pack_into(out, root)
    with pytest.raises(PackError, match=r"was packed with size 400, now 300; keep True, now False; give the same opt"):
        pack_into(out, root, Repacking(size=300))
    picture(seed=99).save(root / "ant" / "new.jpg")
    with pytest.raises(PackError, match=r"was packed from other images: 12 of .*photos, now 13 of .*; choose another"):
        pack_into(out, root)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(PackError, match=r"other holds thesis.txt and no manifest.json; choose an empty or a new fold"):
        pack_into(tmp_path / "other", root)
    (out / MANIFEST).write_text("{")
    with pytest.raises(PackError, match=r"manifest.json is no JSON"):
        pack_into(out, root)
    (out / MANIFEST).write_text("{}")
    with pytest.raises(PackError, match=r"manifest.json is not of the format 'bimkern.pack 1'"):
        pack_into(out, root)


def test_a_folder_among_the_images_or_around_them_is_refused(root):
    with pytest.raises(PackError, match=r"OUT .*photos/packed lies inside SOURCE .*photos: what is packed would be"):
        pack_into(root / "packed", root)
    with pytest.raises(PackError, match=r"SOURCE .*photos lies inside OUT .*; choose another OUT"):
        pack_into(root.parent, root)
    assert not (root / "packed").exists()


def test_a_folder_that_another_process_packs_into_is_refused(root, out):
    out.mkdir()
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        with locked(out):
            os.write(writing, b"held")
            signal.pause()
    try:
        os.read(reading, 4)
        with pytest.raises(PackError, match=rf"is in use by process {process} on .*; choose another"):
            pack_into(out, root)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    pack_into(out, root)


def test_images_that_cannot_be_read_are_left_out_and_listed(root, out):
    reasons = write_bad_files(root / "ant")
    for i in range(len(reasons), 100):
        picture(20, 20, seed=i).save(root / "bee" / f"more {i}.png")
    manifest = pack_into(out, root, max_bad_ratio=0.3)
    assert {file.removeprefix("ant/") for file in manifest.left_out} == reasons.keys()
    for name, reason in reasons.items():
        assert reason in manifest.left_out[f"ant/{name}"]
    assert manifest.bad == len(reasons)
    assert same(batches_of(LOADER, data_of(find_source(out))), batches_of(LOADER, data_of(ImageFolder(paths=(root,)))))


def test_too_many_of_them_end_it_also_over_several_starts(root, out):
    (root / "ant" / "02.webp").write_bytes(b"RIFF0000WEBPVP8 damaged")
    (root / "bee" / "11.webp").write_bytes(b"")
    (root / "ant" / "camera.raw").write_bytes(b"\xff\xd8\xff no image, by its suffix")
    pattern = r"2 of 13 images cannot be read \(the last one is bee/11.webp: empty\), more than --max-bad-ratio 0.1"
    for _ in range(2):  # the second one starts with the shard of the first bad image
        with pytest.raises(SourceError, match=pattern):
            pack_into(out, root)
    assert len(shards_of(out)) == 2
    assert pack_into(out, root, max_bad_ratio=0.2).left_out.keys() == {"ant/02.webp", "ant/camera.raw", "bee/11.webp"}


def test_a_full_disk_is_one_line_and_the_next_start_continues(root, out):
    with full_disk(), pytest.raises(PackingFailed, match=r"packed cannot be written \(File too large\); the same comm"):
        pack_into(out, root)
    assert not list(out.glob("*.tar"))
    assert pack_into(out, root).complete


def test_labels_beside_the_images_are_kept(root, tmp_path, out):
    lines = [f"photos/{file.relative_to(root)}\t{i % 3}" for i, file in enumerate(images_of(root))]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    pack_into(out, tmp_path / "list.txt")
    assert labels_of(out) == labels_of(tmp_path / "list.txt")
    assert same(batches_of(LOADER, data_of(find_source(out))), batches_of(LOADER, data_of(ImageFolder(paths=(root,)))))


def test_without_a_label_for_every_image_there_are_none_and_it_is_said(root, tmp_path, out, caplog):
    (tmp_path / "list.txt").write_text("photos/ant/00.jpg\tant\nphotos/bee/01.png\n")
    pack_into(out, tmp_path / "list.txt")
    assert "packed without labels: " in caplog.text
    assert not [name for name in list_images(find_source(out)).others if name.endswith(".cls")]


def test_shards_are_packed_as_the_folder_of_their_files(root, tmp_path, out):
    write_tars(root, tmp_path / "shards")
    pack_into(out, tmp_path / "shards")
    pack_into(tmp_path / "of the folder", root)
    assert shards_of(out) == shards_of(tmp_path / "of the folder")


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_arrays_keep_their_pixels(tmp_path, out, channels):
    """Beside images, arrays of 1 and 3 channels would not be read: they become PNGs."""
    images = np.stack([smooth_levels(channels=channels, seed=i) for i in range(12)])
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(12) % 2)
    pack_into(out, tmp_path / "images.npz", Repacking(keep=True, decoding=Decoding(channels=channels)))
    ours, theirs = (
        list_images(find_source(data), Decoding(channels=channels)) for data in (out, tmp_path / "images.npz")
    )
    assert len(ours) == len(theirs) == 12
    suffix = ".npy" if channels == 5 else ".png"
    assert ours.files == tuple(file + suffix for file in theirs.files)
    assert list(ours.source.labels(ours.files).values()) == [str(i % 2) for i in range(12)]
    for i, file in enumerate(ours.files):
        with open_in(ours.source, file) as opened:
            pixels = np.load(opened) if channels == 5 else np.asarray(Image.open(opened)).reshape(images[i].shape)
            assert np.array_equal(pixels, images[i])


def test_many_channels_are_shrunk_into_arrays(tmp_path, out):
    (tmp_path / "bands").mkdir()
    levels = smooth_levels(120, 80, channels=5)
    np.save(tmp_path / "bands" / "a.npy", levels)
    np.save(tmp_path / "bands" / "b.npy", smooth_levels(30, 40, channels=5))
    pack_into(out, tmp_path / "bands", Repacking(size=40, decoding=Decoding(channels=5)))
    source = find_source(out)
    assert list_images(source, Decoding(channels=5)).files == ("a.npy", "b.npy")
    with open_in(source, "a.npy") as opened:
        small = np.load(opened)
    bands = [Image.fromarray(levels[:, :, i]).resize((60, 40), Image.Resampling.BICUBIC) for i in range(5)]
    assert np.array_equal(small, np.dstack(bands))


def names_of(files, labels=None):
    names = PackedNames(files, labels)
    jpeg = repack(encoded("PNG"), Repacking(size=10))
    return [names.image(file, jpeg) for file in files]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/1.png", "a/1-b.png"], ["a/1.jpg", "a/1-b.jpg"]),
        (["a.png", "a.jpg", "a.b.png"], ["a.png.jpg", "a.jpg.jpg", "a.b.jpg"]),
        (["../x/1.png", "/data/.cache/2.png"], ["x/1.jpg", "data/cache/2.jpg"]),
        (["000000001", "photo.raw"], ["000000001.jpg", "photo.raw.jpg"]),
    ],
)
def test_names_are_kept_as_far_as_shards_can_hold_them(files, names):
    assert names_of(files) == names


def test_names_and_labels_that_shards_cannot_tell_apart_are_refused():
    with pytest.raises(SourceError, match=r"\.\./a.png and a.png would have the same name 'a.png' in a shard; rename"):
        names_of(["../a.png", "a.png"])
    with pytest.raises(SourceError, match=r"a.1.png and a.2.png have different labels, and one key 'a' in a shard"):
        names_of(["a.1.png", "a.2.png"], {"a.1.png": "x", "a.2.png": "y"})
    names = PackedNames(["a.1.png", "a.2.png"], {"a.1.png": "x", "a.2.png": "x"})
    assert [names.label(file) for file in ("a.1.png", "a.2.png")] == [("a.cls", b"x"), None]

"""DALI on bytes: it decodes every source, and what it does not decode, or cannot be read, is a matter of that image."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_files import picture
from http_folder import served
from interop import import_or_skip
from row_forms import named, write, write_pngs
from source_forms import batches_of, data_of, same, write_folder, write_tars

from bimkern.data import dali, dali_inputs, pil
from bimkern.data.batches import BadImages
from bimkern.data.dali import DaliLoader
from bimkern.data.formats import BadImage, OutOfResources
from bimkern.data.pil import PilLoader
from bimkern.data.resilient_loader import LoadingFailed, ResilientLoader
from bimkern.data.sources.find import find_source
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.workers import WorkerDied

CPU = torch.device("cpu")
ROWS = (".npy", ".h5", ".lmdb", ".parquet", ".arrow")
pytestmark = pytest.mark.skipif(dali.unusable() is not None, reason=f"DALI: {dali.unusable()}")


@pytest.fixture
def photos(tmp_path):
    return write_folder(tmp_path / "photos")


@pytest.fixture
def shards(photos, tmp_path):
    return write_tars(photos, tmp_path / "shards")


@pytest.fixture
def reads(monkeypatch):
    """Sample ids of the crops that PIL makes."""
    made, plain = [], pil.crop
    monkeypatch.setattr(pil, "crop", lambda data, crops, i: made.append(crops.sample_ids[i]) or plain(data, crops, i))
    return made


def loader(threads=2):
    return DaliLoader(threads=threads, device=CPU)


def test_shards_and_files_at_an_address_are_decoded_as_the_folder_is(photos, shards, reads):
    import_or_skip("aiohttp")
    theirs = batches_of(loader(), data_of(ImageFolder(paths=(photos,))))
    assert not reads
    with served(photos.parent) as server:
        addresses = (f"{server.url}/photos", f"{server.url}/shards/part-{{0000..0002}}.tar")
        for place in (shards[0].parent, *map(Path, addresses)):
            data = data_of(find_source(place))
            assert same(batches_of(loader(), data), theirs)
            assert same(batches_of(loader(), data, first=5), theirs[5:])
    assert not reads


@pytest.mark.parametrize("kind", ROWS)
def test_rows_are_decoded_as_the_folder_is_and_arrays_by_pil(tmp_path, reads, kind):
    root = write_pngs(tmp_path / "photos")
    theirs = batches_of(loader(), data_of(ImageFolder(paths=(root,))))
    assert not reads
    ours = data_of(find_source(write(root, named(tmp_path, kind))))
    differences = [
        (one.images.int() - other.images.int()).abs().max()
        for one, other in zip(batches_of(loader(), ours), theirs, strict=True)
    ]
    if kind in (".npy", ".h5"):
        assert len(reads) == 40  # of five images in eight steps
    else:
        assert max(differences) == 0
        assert not reads


@pytest.fixture
def halved(monkeypatch):
    """Names of images of which DALI gets half of the bytes, as if it did not decode them."""
    names, plain = set(), dali_inputs._content

    def content(data, sample_id):
        found = plain(data, sample_id)
        return found[: len(found) // 2] if data.images.files[sample_id] in names else found

    monkeypatch.setattr(dali_inputs, "_content", content)
    return names


def test_what_dali_does_not_decode_is_decoded_by_pil_and_said_once(shards, halved, caplog):
    data = data_of(find_source(shards[0].parent))
    by_dali, by_pil = batches_of(loader(), data), batches_of(PilLoader(workers=0), data)
    halved |= {"ant/00.jpg", "bee/03.jpg"}
    ours = loader()
    found = batches_of(ours, data)
    assert ours.refused == halved
    for batch, one, other in zip(found, by_dali, by_pil, strict=True):
        refused = torch.tensor([data.images.files[i] in halved for i in batch.sample_ids])
        assert torch.equal(batch.images, torch.where(refused[:, None, None, None], other.images, one.images))
    (line, *more) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(
        r"DALI does not decode (ant|bee)/0\d.jpg \(.{9,200}\); PIL decodes it, and all like it, .*", line
    )
    assert more in ([], ["PIL decodes 2 images for DALI that it does not"])
    caplog.clear()
    assert same(batches_of(ours, data), found)  # it knows them
    assert not caplog.records


def test_of_files_on_disk_too(tmp_path, monkeypatch):
    for i in range(3):
        picture(40, 30, seed=i).save(tmp_path / f"{i}.jpg")
    data = data_of(ImageFolder(paths=(tmp_path,)), batch_size=3)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:500])
    monkeypatch.setattr(pil, "crop", lambda *arguments: np.zeros((3, 16, 16), np.uint8))  # as if PIL decoded it
    ours = loader()
    found = batches_of(ours, data, last=4)
    assert ours.refused == {"1.jpg"}
    for batch in found:
        assert (batch.images[batch.sample_ids == 1] == 0).all()
        assert (batch.images[batch.sample_ids != 1] != 0).any()


class FailingPipeline:
    """DALI that fails on every image."""

    def __init__(self, inputs):
        self.inputs = inputs

    def schedule_run(self):
        next(self.inputs)

    def outputs(self):
        raise RuntimeError("encountered:\nno room on the device")


def test_where_it_fails_on_all_images_of_a_run_it_ends_with_the_reason(shards, monkeypatch):
    """Though it decodes the sound image, which is smaller."""
    data, plain = data_of(find_source(shards[0].parent), batch_size=2), DaliLoader._pipeline

    def failing(self, given, inputs):
        return FailingPipeline(inputs) if len(given.images) == len(data.images) else plain(self, given, inputs)

    monkeypatch.setattr(DaliLoader, "_pipeline", failing)
    ours = loader()
    with pytest.raises(WorkerDied, match=r"DALI fails \(no room on the device\); --loader pil does without it"):
        list(ours.batches(data, 0, 4))
    assert ours.refused == {data.images.files[i] for i in data[0].sample_ids}


def test_bytes_that_cannot_be_read_make_a_bad_image(shards, monkeypatch):
    data = data_of(find_source(shards[0].parent), batch_size=12)
    source, plain = type(data.images.source), type(data.images.source).open

    def failing(self, file):
        if file in ("ant/00.jpg", "bee/01.png"):
            raise BadImage("it is gone")
        return plain(self, file)

    monkeypatch.setattr(source, "open", failing)
    with pytest.raises(BadImages) as raised:
        list(loader().batches(data, 0, 1))
    named = {data.images.files[i]: fault for i, fault in raised.value.faults.items()}
    assert named == dict.fromkeys(("ant/00.jpg", "bee/01.png"), "it is gone")


def test_a_shortage_while_bytes_are_read_is_not_the_images_fault(shards, monkeypatch):
    data = data_of(find_source(shards[0].parent))

    def out_of_handles(self, file):
        raise OutOfResources("no file can be read")

    monkeypatch.setattr(type(data.images.source), "open", out_of_handles)
    with pytest.raises(LoadingFailed, match=r"died 3 times at the same images \(no file can be read\)"):
        list(ResilientLoader(loader(), data, pytest.fail).steps(0, 1))


def test_an_image_that_changes_in_size_is_a_bad_image(shards, monkeypatch):
    data, other = data_of(find_source(shards[0].parent), batch_size=12), BytesIO()
    picture(9, 9).save(other, "PNG")
    plain = dali_inputs._content
    changed = data.images.files.index_of("bee/01.png")

    def content(data, sample_id):
        found = plain(data, sample_id)
        return np.frombuffer(other.getvalue(), dtype=np.uint8) if sample_id == changed else found

    monkeypatch.setattr(dali_inputs, "_content", content)
    with pytest.raises(BadImages) as raised:
        list(loader().batches(data, 0, 1))
    assert raised.value.faults == {changed: "its size has changed since it was checked"}

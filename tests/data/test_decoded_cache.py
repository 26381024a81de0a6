"""--cache memory: every image is decoded once, and batches are those without it, bit for bit."""

import numpy as np
import pytest
import torch
from bad_files import encoded, picture
from checked import checked_images
from image_kinds import turned_files
from source_forms import batches_of, same
from spectral import write_spectral

from bimkern.data import decoded_cache
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.decoded_cache import bytes_of, kept_in_memory
from bimkern.data.loader import LoaderError, PilLoader, choose_loader
from bimkern.data.source import SourceError
from bimkern.data.step_layout import StepLayout


def plan(images, **options):
    layout = StepLayout.uniform(image_size=16, batch_size=6, micro_batch=6, num_steps=8)
    return MicroBatches(images=images, augment=RandomResizedCrop(), seed=3, layout=layout, **options)


@pytest.fixture
def photos(tmp_path):
    """Images of every orientation, in gray, in color and with alpha, and some that are not as they were checked."""
    for name, (content, _) in turned_files(picture(60, 48)).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "gray.jpg").write_bytes(encoded("JPEG", picture().convert("L")))
    (tmp_path / "alpha.png").write_bytes(encoded("PNG", picture().convert("RGBA")))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_without_it_also_where_the_files_are_gone(photos, workers):
    images = checked_images(photos)
    expected = batches_of(PilLoader(workers=0), plan(images))
    kept = kept_in_memory(images, workers=workers)
    assert bytes_of(images) == 3 * int(images.sizes.prod(axis=1).sum())
    for path in photos.iterdir():
        path.unlink()
    for loading in (0, 1):
        assert same(batches_of(PilLoader(workers=loading), plan(kept)), expected)


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_images_of_other_channels_are_kept_too(tmp_path, channels):
    images = checked_images(write_spectral(tmp_path / "images", channels), channels)
    expected = batches_of(PilLoader(workers=0), plan(images))
    assert same(batches_of(PilLoader(workers=0), plan(kept_in_memory(images, workers=0))), expected)


def test_jpegs_are_drafted_as_without_it(tmp_path):
    for i in range(3):
        picture(90 + 60 * i, 90 + 60 * i, seed=i).save(tmp_path / f"{i}.jpg")
    images = checked_images(tmp_path)
    data, kept = (plan(one, jpeg_draft=2.0) for one in (images, kept_in_memory(images, workers=0)))
    assert {1, 2, 4} <= set(np.concatenate([data[i].reductions for i in range(8)]).tolist())
    assert same(batches_of(PilLoader(workers=0), kept), batches_of(PilLoader(workers=0), data))


def test_a_part_of_the_images_has_its_own_pixels(photos):
    images = kept_in_memory(checked_images(photos), workers=0)
    some = images.only([5, 2, 9])
    for i, of_all in enumerate((5, 2, 9)):
        assert some.decode(i).pixels.tobytes() == images.decode(of_all).pixels.tobytes()


def test_each_is_decoded_once(photos, monkeypatch):
    images, opened = checked_images(photos), []
    plain = type(images).open
    monkeypatch.setattr(type(images), "open", lambda self, i: opened.append(i) or plain(self, i))
    kept = kept_in_memory(images, workers=0)
    batches_of(PilLoader(workers=0), plan(kept))
    assert sorted(opened) == list(range(len(images)))


def test_what_has_changed_or_gone_bad_is_left_to_the_loader(photos):
    images = checked_images(photos)
    changed, gone = images.files.index("gray.jpg"), images.files.index("alpha.png")
    picture(30, 20).save(photos / "gray.jpg")
    (photos / "alpha.png").write_bytes(b"")
    kept = kept_in_memory(images, workers=1)
    assert [i for i in range(len(images)) if kept.kept.get(i) is None] == sorted([changed, gone])


def test_without_memory_it_is_an_error_in_a_line(photos, monkeypatch):
    def none(*_):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(decoded_cache, "mmap", none)
    with pytest.raises(
        SourceError, match=r"cannot be kept decoded \(Cannot allocate memory\); leave out --cache memory, or shrink"
    ):
        kept_in_memory(checked_images(photos), workers=0)


def test_dali_decodes_for_itself():
    why = "--cache memory keeps images of PIL"
    assert choose_loader("auto", torch.device("cuda"), 2, kept=True)[1] == f"PIL in 2 processes, as {why}"
    with pytest.raises(LoaderError, match=f"--loader dali: {why}; take --loader pil"):
        choose_loader("dali", torch.device("cpu"), 2, kept=True)

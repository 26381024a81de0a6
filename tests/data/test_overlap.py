"""Images that are trained on may not be evaluated on: the same files, whatever they are called."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from source_forms import data_of, files_of, write_folder, write_tars

from bimkern.data.overlap import refuse_overlap
from bimkern.data.source import SourceError
from bimkern.data.sources.find import find_source


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "photos")


def images_of(*places):
    return data_of(find_source(list(map(Path, places)))).images


def linked(root, tmp_path, link):
    """Return a folder with another name for the first image of one."""
    (tmp_path / "links").mkdir()
    link(files_of(root)[0], tmp_path / "links" / "other name.jpg")
    return tmp_path / "links"


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_to_a_file_is_the_file(root, tmp_path, link):
    folder = linked(root, tmp_path, link)
    with pytest.raises(SourceError, match=r"1 of 1 images to evaluate on, in .*links, are also trained on") as raised:
        refuse_overlap(images_of(root), images_of(folder))
    assert str(raised.value).endswith("trained on ('other name.jpg'); evaluate on others")
    assert "\n" not in str(raised.value)


def test_a_copy_is_another_file_and_so_is_one_that_is_gone(root, tmp_path):
    train, folder = images_of(root), linked(root, tmp_path, shutil.copy)
    refuse_overlap(train, images_of(folder))
    files_of(root)[0].unlink()
    refuse_overlap(train, images_of(folder))


def test_a_folder_and_a_list_of_its_files_have_them_in_common(root, tmp_path):
    (tmp_path / "val.txt").write_text("\n".join(f"photos/{file.relative_to(root)}" for file in files_of(root)[1:6]))
    with pytest.raises(SourceError, match=r"5 of 5 .*\('photos/.*', 'photos/.*', 'photos/.*', and 2 more\); evaluate"):
        refuse_overlap(images_of(root), images_of(tmp_path / "val.txt"))


def test_members_of_shards_are_told_by_shard_and_place(root, tmp_path):
    shards = write_tars(root, tmp_path / "shards")
    (tmp_path / "again").mkdir()
    again = shutil.copy(shards[0], tmp_path / "again" / "part-9999.tar")  # all names now begin with their shard
    for val in (shards[1], tmp_path / "shards"):
        with pytest.raises(SourceError, match=r"are also trained on"):
            refuse_overlap(images_of(*shards, again), images_of(val))
    refuse_overlap(images_of(*shards[:2]), images_of(shards[2]))
    refuse_overlap(images_of(*shards), images_of(again))
    refuse_overlap(images_of(*shards), images_of(root))


def test_rows_are_told_by_their_file_and_name(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", images=pixels)
    with pytest.raises(SourceError, match=r"4 of 4 images to evaluate on, in .*a.npz, are also trained on"):
        refuse_overlap(images_of(tmp_path / "a.npz"), images_of(tmp_path / "a.npz"))
    refuse_overlap(images_of(tmp_path / "a.npz"), images_of(tmp_path / "b.npz"))
    with pytest.raises(SourceError, match=r"4 of 4 images to evaluate on, in .*b.npz, are also trained on"):
        refuse_overlap(images_of(tmp_path / "a.npz", tmp_path / "b.npz"), images_of(tmp_path / "b.npz"))


def test_arrays_of_one_file_are_told_by_their_names(tmp_path):
    """Both parts may begin with the same blank image."""
    blank = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x_train=blank, x_test=blank)
    train, test = (images_of(f"{tmp_path}/x.npz:{name}") for name in ("x_train", "x_test"))
    refuse_overlap(train, test)
    for same in (images_of(tmp_path / "x.npz"), images_of(f"{tmp_path}/x.npz:x_train")):
        with pytest.raises(SourceError, match=r"2 of 2 images to evaluate on, in .*x.npz, are also trained on"):
            refuse_overlap(train, same)

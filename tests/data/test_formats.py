"""Formats beside the usual ones: read where Pillow reads them, else named with what to do."""

import numpy as np
import pytest
from bad_files import encoded, picture
from PIL import Image, features
from spectral import smooth_levels

from bimkern.data.check import check, readable
from bimkern.data.listing import list_images
from bimkern.data.repack import Repacking, repack
from bimkern.data.sources.image_folder import ImageFolder

FORMATS = {"jp2": ("JPEG2000", "jpg_2000"), "avif": ("AVIF", "avif")}


def checked(folder):
    listing = list_images(ImageFolder(paths=(folder,)))
    return listing, check(listing, workers=0)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("named", [True, False], ids=["by suffix", "by content"])
def test_jpeg_2000_and_avif_are_read_by_pil(tmp_path, suffix, named):
    kind, feature = FORMATS[suffix]
    if not features.check(feature):
        pytest.skip(f"this Pillow has no {kind}")
    photo = Image.fromarray(smooth_levels(64, 48, channels=3))
    file = f"a.{suffix}" if named else "a.photo"
    (tmp_path / file).write_bytes(encoded(kind, photo))
    listing, found = checked(tmp_path)
    assert listing.files == (file,)
    assert (found[file].width, found[file].height, found[file].fault) == (64, 48, None)
    assert readable(listing, found).pil_only.all()
    packed = repack((tmp_path / file).read_bytes(), Repacking(keep=True))
    assert (packed.suffix, packed.copied) == (f".{suffix}", True)


def test_16_bits_of_jpeg_2000_are_refused_and_not_clipped(tmp_path):
    levels = np.linspace(0, 65535, 64 * 48, dtype=np.uint16).reshape(48, 64)
    (tmp_path / "a.jp2").write_bytes(encoded("JPEG2000", Image.fromarray(levels)))
    assert checked(tmp_path)[1]["a.jp2"].fault == (
        "16 bits per channel (uint16); state their range, as in --range 0 4095, or convert it to 8"
    )


def test_animated_avif_is_refused(tmp_path):
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    (tmp_path / "a.avif").write_bytes(encoded("AVIF", save_all=True, append_images=[picture(seed=1)]))
    assert checked(tmp_path)[1]["a.avif"].fault == "animated"


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heif_is_named_with_what_to_do(tmp_path, brand, monkeypatch):
    """Also under the suffix of a JPEG, as some telephones have it; the brand mif1 may be that of an AVIF, too."""
    if brand == b"mif1":
        monkeypatch.setattr("bimkern.data.formats._FORMATS", ("JPEG",))
    for name in ("a.heic", "b.jpg"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(64))
    listing, found = checked(tmp_path)
    expected = "a HEIF image, which Pillow does not read; convert images of other formats to JPEG or PNG"
    assert (listing.others["a.heic"], found["b.jpg"].fault) == (expected, expected)


def test_avif_is_named_where_pillow_is_too_old(tmp_path, monkeypatch):
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x18ftypavif" + bytes(64))
    assert checked(tmp_path)[1]["a.avif"].fault == (
        "an AVIF image, which Pillow reads from 11.3 on; install that, or convert images of other formats to JPEG or "
        "PNG"
    )

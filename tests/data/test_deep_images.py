"""Images of more than 8 bits, and of several bands in TIFFs: read by a stated range, the same from every source."""

import sys
from contextlib import suppress
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import pytest
import torch
from bad_files import encoded
from checked import checked_images, listed
from image_kinds import exif
from PIL import Image
from source_forms import write_tars
from spectral import smooth_levels

from bimkern.data import pil
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.check import check, readable
from bimkern.data.dali import DaliLoader
from bimkern.data.decoding import Decoding, decode
from bimkern.data.formats import BadImage, allow_pixels
from bimkern.data.levels import to_levels
from bimkern.data.listing import list_images
from bimkern.data.pack_manifest import PackError
from bimkern.data.packing import pack
from bimkern.data.pil import PilLoader
from bimkern.data.repack import Repacking, repack
from bimkern.data.source import SourceError
from bimkern.data.sources.find import find_source
from bimkern.data.statistics import measure
from bimkern.data.step_layout import StepLayout

tifffile = pytest.importorskip("tifffile")

TOP = 4095
RANGE = (0.0, float(TOP))


def deep(width=60, height=48, channels=5, dtype="u2", seed=0):
    """Return smooth values, [H, W, C] of 12 bits."""
    values = np.random.default_rng(seed).normal(scale=9, size=(height, width, channels))
    return np.clip(16.0 * smooth_levels(width, height, channels, seed) + values, 0, TOP).astype(dtype)


def tiff(values, **options):
    stream = BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def array(values):
    stream = BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def levels_of(content, channels, stated=RANGE, **options):
    decoded = decode(BytesIO(content), how=Decoding(channels=channels, range=stated, **options))
    assert decoded.pil_only
    return np.dstack([np.asarray(plane) for plane in decoded.planes])


def pages(values):
    return np.moveaxis(values, -1, 0)


BANDS = {
    "samples": lambda v: tiff(v, photometric="minisblack", planarconfig="contig"),
    "planes": lambda v: tiff(pages(v), photometric="minisblack", planarconfig="separate"),
    "pages": lambda v: tiff(pages(v), photometric="minisblack"),
    "RGB and more": lambda v: tiff(v, photometric="rgb", planarconfig="contig"),
    "tiles": lambda v: tiff(v, photometric="minisblack", planarconfig="contig", tile=(16, 16)),
    "deflated": lambda v: tiff(v, photometric="minisblack", planarconfig="contig", compression="zlib"),
    "big endian": lambda v: tiff(v, photometric="minisblack", planarconfig="contig", byteorder=">"),
    "BigTIFF": lambda v: tiff(v, photometric="minisblack", planarconfig="contig", bigtiff=True),
    "as an array": lambda v: tiff(v, photometric="minisblack"),  # H pages of W x C, as programs write arrays
    "npy": array,
    "npy by columns": lambda v: array(np.asfortranarray(v)),
}


@pytest.mark.parametrize("kind", BANDS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_bands_are_samples_planes_or_pages(kind, dtype):
    values = (deep() >> 4).astype("u1") if dtype == "u1" else deep(dtype=dtype)
    assert np.array_equal(levels_of(BANDS[kind](values), 5), to_levels(values, RANGE))


@pytest.mark.parametrize("channels", [2, 4, 16])
@pytest.mark.parametrize("kind", ["samples", "pages", "npy"])
def test_bands_are_of_any_number(kind, channels, caplog):
    values = deep(channels=channels)
    assert np.array_equal(levels_of(BANDS[kind](values), channels), to_levels(values, RANGE))
    assert caplog.text == ""  # of Pillow and tifffile


DEEP = {
    "png": lambda v: encoded("PNG", Image.fromarray(v[:, :, 0])),
    "tif": lambda v: encoded("TIFF", Image.fromarray(v[:, :, 0])),
    "lzw.tif": lambda v: encoded("TIFF", Image.fromarray(v[:, :, 0]), compression="tiff_lzw"),
    "float.tif": lambda v: encoded("TIFF", Image.fromarray(v[:, :, 0].astype(np.float32))),
    "int.tif": lambda v: tiff(v[:, :, 0].astype(np.int32)),
    "uint.tif": lambda v: tiff(v[:, :, 0].astype(np.uint32)),
    "double.tif": lambda v: tiff(v[:, :, 0].astype(np.float64)),
    "rgb.tif": lambda v: tiff(v, photometric="rgb"),
    "rgb planes.tif": lambda v: tiff(pages(v), photometric="rgb", planarconfig="separate"),
    "rgb float.tif": lambda v: tiff(v.astype(np.float32), photometric="rgb"),
    "first page.tif": lambda v: tiff(np.stack([v, v[::-1]]), photometric="rgb"),
    "rgb.npy": array,
    "gray.npy": lambda v: array(v[:, :, :1]),
    "flat.npy": lambda v: array(v[:, :, 0]),
}


@pytest.mark.parametrize("kind", DEEP)
def test_gray_and_rgb_are_read_and_stand_for_each_other(kind):
    values = deep(channels=3)
    levels = to_levels(values, RANGE)
    gray = Image.fromarray(levels[:, :, 0] if "rgb" not in kind and "page" not in kind else levels)
    for channels, mode in ((1, "L"), (3, "RGB")):
        assert np.array_equal(levels_of(DEEP[kind](values), channels).squeeze(), np.asarray(gray.convert(mode)))


def test_jpeg_2000_is_read_by_the_range_that_pillow_scales_to():
    values = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    content = encoded("JPEG2000", Image.fromarray(values))
    assert np.array_equal(levels_of(content, 1, "dtype")[:, :, 0], to_levels(values, "dtype"))
    with pytest.raises(BadImage, match="JPEG 2000 of more than 8 bits, which Pillow scales to 16: take --range dtype"):
        levels_of(content, 1)


@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
def test_alpha_of_more_bits_is_dropped_and_nothing_else(extra):
    values = deep(channels=4)
    content = tiff(values, photometric="rgb", extrasamples=[extra])
    assert np.array_equal(levels_of(content, 3), to_levels(values[:, :, :3], RANGE))
    with pytest.raises(BadImage, match="alpha of more than 8 bits, which --alpha white does not read; convert it to 8"):
        levels_of(content, 3, alpha="white")
    assert np.array_equal(levels_of(content, 4), to_levels(values, RANGE))


def test_an_orientation_is_kept(tmp_path):
    content = tiff(deep(), photometric="minisblack", planarconfig="contig", extratags=[(274, "H", 1, 6, True)])
    (tmp_path / "a.tif").write_bytes(content)
    images = checked_images(tmp_path, 5, range=RANGE)
    assert (images.orientations.tolist(), images.sizes.tolist()) == ([6], [[48, 60]])


def test_8_bits_are_read_as_before_whatever_the_range():
    photo = Image.fromarray(smooth_levels(64, 48, channels=3))
    for content in (encoded("PNG", photo), encoded("TIFF", photo), encoded("JPEG", photo, exif=exif(6))):
        ours, theirs = decode(BytesIO(content), how=Decoding(range=RANGE)), decode(BytesIO(content))
        assert ours.pixels.tobytes() == theirs.pixels.tobytes()
        assert (ours.pil_only, ours.orientation) == (theirs.pil_only, theirs.orientation)


def reduced(values):
    return tiff(values, photometric="minisblack", planarconfig="contig", subfiletype=1)


SAMPLES = BANDS["samples"]
BAD = {
    "other bands": (SAMPLES(deep(channels=4)), 5, RANGE, "has 4 channels, the encoder takes 5"),
    "RGB for 5": (tiff(deep(channels=3), photometric="rgb"), 5, RANGE, "has 3 channels, the encoder takes 5"),
    "bands for RGB": (SAMPLES(deep()), 3, RANGE, "has 5 channels, the encoder takes 3"),
    "no range": (SAMPLES(deep()), 5, None, "16 bits per channel (uint16); state their range"),
    "RGB without range": (tiff(deep(channels=3), photometric="rgb"), 3, None, "16 bits per channel (uint16); state"),
    "floats and dtype": (SAMPLES(deep(dtype="f4")), 5, "dtype", "--range dtype is for unsigned integers"),
    "array without range": (array(deep()), 5, None, "16 bits per channel (uint16); state their range"),
    "NaN": (SAMPLES(np.full((9, 8, 5), np.nan, "f4")), 5, RANGE, "some values are not finite"),
    "truncated": (SAMPLES(deep())[:9000], 5, RANGE, "truncated"),
    "truncated, deflated": (BANDS["deflated"](deep())[:9000], 5, RANGE, ""),
    "CMYK": (encoded("TIFF", Image.new("CMYK", (9, 8))), 4, None, "colors of SEPARATED; convert it to gray, RGB or"),
    "white is 0": (tiff(deep(channels=1)[:, :, 0], photometric="miniswhite"), 1, RANGE, "colors of MINISWHITE"),
    "palette": (encoded("TIFF", Image.new("P", (9, 8))), 5, None, "colors of PALETTE"),
    "preview": (reduced(deep()), 5, RANGE, "a preview, as in a camera's raw file"),
    "four axes": (tiff(np.zeros((2, 5, 9, 8), "u1"), photometric="minisblack"), 5, None, "uint8 [2, 5, 9, 8] ("),
    "LZW": (encoded("TIFF", Image.new("LA", (9, 8)), compression="tiff_lzw"), 2, None, "<COMPRESSION.LZW: 5> requires"),
    "noise": (b"II*\0" + np.random.default_rng(0).bytes(500), 5, RANGE, ""),
    "color PNG": (encoded("PNG", Image.new("I;16", (9, 8))), 5, RANGE, "has 1 channel (I;16), the encoder takes 5; "),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_such_image_is_named_in_a_line(kind):
    content, channels, stated, reason = BAD[kind]
    if kind == "LZW" and find_spec("imagecodecs"):
        pytest.skip("imagecodecs reads it")
    with pytest.raises(BadImage) as raised:
        levels_of(content, channels, stated)
    assert str(raised.value).startswith(reason)
    assert "\n" not in str(raised.value)
    if kind == "LZW":
        assert str(raised.value).endswith("the 'imagecodecs' package: pip install 'bimkern[tiff]'")


@pytest.mark.parametrize("kind", ["deep", "shallow", "bands"])
def test_whatever_is_wrong_with_a_tiff_it_is_a_bad_image(kind):
    values, generator = deep(24, 16, channels=5 if kind == "bands" else 3), np.random.default_rng(0)
    values = values if kind != "shallow" else (values >> 4).astype("u1")
    content = tiff(values, photometric="minisblack" if kind == "bands" else "rgb", planarconfig="contig")
    for _ in range(80):
        damaged = bytearray(content)
        for at in generator.integers(0, 300, 3):  # header and tags
            damaged[at] = generator.integers(256)
        with suppress(BadImage):
            levels_of(bytes(damaged), 5 if kind == "bands" else 3)


def test_no_memory_is_taken_for_what_a_tiff_only_claims(monkeypatch):
    content = bytearray(SAMPLES(deep(64, 48)))
    for length in (b"\x40\0\0\0", b"\x30\0\0\0"):
        content = content.replace(length, b"\0\0\1\0")  # 65536
    with pytest.raises(BadImage, match="65536 x 65536 pixels, more than --max-pixels"):
        levels_of(bytes(content), 5)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # put back at the end
    allow_pixels(2**40)
    with pytest.raises(BadImage, match="truncated"):
        levels_of(bytes(content), 5)


def test_without_tifffile_such_a_tiff_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(BadImage, match=r"a TIFF that Pillow does not read; tifffile does \(.*\): pip install 'bimkern"):
        levels_of(SAMPLES(deep()), 5)


def test_a_tiff_cannot_lead_to_other_files(tmp_path):
    """OME-TIFF may name files beside it."""
    tifffile.imwrite(tmp_path / "b.ome.tif", pages(deep(seed=1)), photometric="minisblack", ome=True)
    content = (tmp_path / "b.ome.tif").read_bytes()
    assert np.array_equal(levels_of(content, 5), to_levels(deep(seed=1), RANGE))


def plan(images, batch_size=24):
    layout = StepLayout.uniform(image_size=16, batch_size=batch_size, micro_batch=batch_size)
    return MicroBatches(images=images, augment=RandomResizedCrop(), seed=3, layout=layout)


def crops(source, decoding):
    listing = list_images(source, decoding)
    return pil.decode(plan(readable(listing, check(listing, workers=0))), 0).images


@pytest.fixture
def folder(tmp_path):
    """A folder of nine arrays of 5 channels and 16 bits."""
    (tmp_path / "deep").mkdir()
    for i in range(9):
        np.save(tmp_path / "deep" / f"{i:09d}.npy", deep(seed=i))
    return tmp_path / "deep"


@pytest.fixture
def expected(tmp_path):
    """The crops of the same images, mapped to 8 bits beforehand."""
    (tmp_path / "mapped").mkdir()
    for i in range(9):
        np.save(tmp_path / "mapped" / f"{i:09d}.npy", to_levels(deep(seed=i), RANGE))
    return crops(find_source(tmp_path / "mapped"), Decoding(channels=5))


@pytest.mark.parametrize("form", ["folder", "tiffs", "tars", "list", ".npy", ".npz", ".h5", ".lmdb", ".parquet", "own"])
def test_every_source_gives_the_batches_of_the_images_mapped_beforehand(form, folder, expected, tmp_path, monkeypatch):
    data, images = tmp_path / f"x{form}", np.stack([deep(seed=i) for i in range(9)])
    if form == "folder":
        data = folder
    elif form == "tiffs":
        data.mkdir()
        for i, values in enumerate(images):
            (data / f"{i}.tif").write_bytes(SAMPLES(values))
    elif form == "tars":
        data = write_tars(folder, tmp_path / "shards")[0].parent
    elif form == "list":
        data = tmp_path / "x.txt"
        data.write_text("".join(f"deep/{i:09d}.npy\n" for i in range(9)))
    elif form == ".npy":
        np.save(data, images)
    elif form == ".npz":
        np.savez(data, images=images, labels=np.arange(9))
    elif form == ".h5":
        with pytest.importorskip("h5py").File(data, "w") as file:
            file["images"] = images
    elif form == ".lmdb":
        base = pytest.importorskip("lmdb").open(str(data), subdir=False)
        with base.begin(write=True) as writing:
            for i in range(9):
                writing.put(f"{i}".encode(), (folder / f"{i:09d}.npy").read_bytes())
        base.close()
    elif form == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        rows = [(folder / f"{i:09d}.npy").read_bytes() for i in range(9)]
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"image": rows}), data)
    else:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "deep_rows.py").write_text(
            "import numpy as np\n\nclass Mine:\n    def __len__(self):\n        return 9\n"
            "    def read(self, i):\n        return np.load(f'deep/{i:09d}.npy')\n"
        )
        data = "deep_rows:Mine"
    assert torch.equal(crops(find_source([data]), Decoding(channels=5, range=RANGE)), expected)


def test_processes_load_the_same(folder, expected):
    data = plan(checked_images(folder, 5, range=RANGE))
    (batch,) = PilLoader(workers=1).batches(data, 0, 1)
    assert torch.equal(batch.images, expected)


def test_dali_leaves_them_to_pil(tmp_path):
    pytest.importorskip("nvidia.dali")
    (tmp_path / "deep.png").write_bytes(DEEP["png"](deep(64, 48, channels=3)))
    (tmp_path / "deep.tif").write_bytes(DEEP["rgb.tif"](deep(64, 48, channels=3)))
    Image.fromarray(smooth_levels(64, 48, channels=3)).save(tmp_path / "shallow.png")
    images = checked_images(tmp_path, range=RANGE)
    assert images.pil_only.tolist() == [True, True, False]
    data = plan(images, batch_size=12)
    (ours,) = DaliLoader(threads=2, device=torch.device("cpu")).batches(data, 0, 1)
    away = (ours.images.int() - pil.decode(data, 0).images.int()).abs().flatten(1).amax(dim=1)
    assert away[torch.from_numpy(data[0].pil_only)].max() == 0
    assert away.max() < 32  # the bicubic filter overshoots


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_without_its_range_is_refused_at_once(tmp_path, suffix):
    images = np.zeros((4, 9, 8, 5), np.float32)
    (np.save if suffix == ".npy" else np.savez)(tmp_path / f"x{suffix}", images)
    for stated, message in ((None, r"32 bits per channel \(float32\); state"), ("dtype", "these are float32")):
        with pytest.raises(SourceError, match=message):
            list_images(find_source(tmp_path / f"x{suffix}"), Decoding(channels=5, range=stated))
    assert len(list_images(find_source(tmp_path / f"x{suffix}"), Decoding(channels=5, range=(0, 1)))) == 4


def test_an_array_of_8_bits_comes_before_others(tmp_path):
    np.savez(tmp_path / "x.npz", features=np.zeros((4, 9, 8, 5), "f4"), photos=np.zeros((4, 9, 8, 3), "u1"))
    assert find_source(tmp_path / "x.npz").open_rows().read(0).shape == (9, 8, 3)
    np.savez(tmp_path / "y.npz", features=np.zeros((4, 9, 8, 5), "f4"), names=np.array(["a"] * 4))
    assert find_source(tmp_path / "y.npz").open_rows().read(0).shape == (9, 8, 5)


def test_arrays_in_a_folder_are_images_where_a_range_is_stated(tmp_path):
    np.save(tmp_path / "a.npy", deep(channels=3))
    with pytest.raises(SourceError, match=r"there is no .* image in .*, only other files \(1 .npy\)"):
        listed(tmp_path)
    assert listed(tmp_path, range=RANGE).files == ("a.npy",)


def test_they_are_measured_as_they_are_read(folder, tmp_path):
    found = measure(listed(folder, 5, range=RANGE), workers=0)
    pixels = np.stack([to_levels(deep(seed=i), RANGE) for i in range(9)]).reshape(-1, 5) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), atol=5.1e-5)  # four digits
    with pytest.raises(SourceError, match=r"no image of 9 can be read \(000000000.npy: 16 bits per channel \(uint16\)"):
        measure(listed(folder, 5), workers=0)


def test_each_range_is_checked_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.tif").write_bytes(SAMPLES(deep(dtype="f4")))
    faults = [check(listed(tmp_path / "photos", 5, range=stated), workers=0)["a.tif"].fault for stated in (RANGE, None)]
    assert faults[0] is None
    assert faults[1].startswith("32 bits per channel")


@pytest.mark.parametrize("stated", [(0, 4095), (np.int64(0), np.float32(4095)), (0.0, 4095.0)], ids=str)
def test_a_range_has_one_text_whatever_its_numbers_are(stated):
    assert str(Decoding(range=stated)) == "3 channels, range (0.0, 4095.0)"
    assert str(Decoding(range="dtype")) == "3 channels, range dtype"


@pytest.mark.parametrize("keep", [True, False])
def test_packed_images_have_8_bits_but_for_files_that_are_kept(folder, expected, tmp_path, keep):
    how = Repacking(keep=keep, decoding=Decoding(channels=5, range=RANGE))
    options = {"shard_images": 9, "workers": 0, "max_bad_ratio": 0}
    manifest = pack(find_source(folder), tmp_path / "out", how, **options)
    assert manifest.options["range"] == [0, TOP]
    stated = RANGE if keep else None
    assert torch.equal(crops(find_source(tmp_path / "out"), Decoding(channels=5, range=stated)), expected)
    assert pack(find_source(folder), tmp_path / "out", how, **options) == manifest  # it is the same command
    other = Repacking(keep=keep, decoding=Decoding(channels=5, range=(0, 9)))
    with pytest.raises(PackError, match=r"was packed with range \[0.0, 4095.0\], now \[0.0, 9.0\]"):
        pack(find_source(folder), tmp_path / "out", other, **options)


def test_a_deep_photograph_is_packed_as_a_jpeg():
    content = tiff(deep(channels=3), photometric="rgb")
    packed = repack(content, Repacking(decoding=Decoding(range=RANGE)))
    assert (packed.suffix, packed.copied) == (".jpg", False)
    with Image.open(BytesIO(packed.content)) as image:
        assert np.abs(np.asarray(image, dtype=int) - to_levels(deep(channels=3), RANGE)).mean() < 4
    kept = repack(content, Repacking(keep=True, decoding=Decoding(range=RANGE)))
    assert (kept.suffix, kept.content) == (".tif", content)

"""Alpha: left out, with the colors as they are stored, or an image is laid over white or black; in both loaders."""

from io import BytesIO

import numpy as np
import pytest
import torch
from bad_files import encoded
from checked import checked_images
from PIL import Image
from spectral import smooth_levels

from bimkern.data import pil
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.dali import DaliLoader
from bimkern.data.decoding import Decoding, decode
from bimkern.data.step_layout import StepLayout

BACKGROUNDS = {"white": 255, "black": 0}
over = pytest.mark.parametrize("alpha", BACKGROUNDS)


def rgba():
    levels = smooth_levels(64, 48, channels=4)
    levels[:8, :, 3] = 0
    levels[-8:, :, 3] = 255
    return Image.fromarray(levels)


def transparent_files():
    """Return files by name, each with the RGBA that it stands for."""
    photo, gray = rgba(), rgba().convert("LA")
    palette = photo.convert("RGB").quantize(16)
    files = {
        "a.png": encoded("PNG", photo),
        "gray.png": encoded("PNG", gray),
        "a.tif": encoded("TIFF", photo),
        "a.webp": encoded("WEBP", photo, lossless=True, exact=True),
        "palette.png": encoded("PNG", palette, transparency=bytes(range(0, 256, 16))),
        "palette.gif": encoded("GIF", palette, transparency=3),
        "color.png": encoded("PNG", photo.convert("RGB"), transparency=photo.convert("RGB").getpixel((0, 0))),
        "tone.png": encoded("PNG", photo.convert("L"), transparency=photo.convert("L").getpixel((0, 0))),
    }
    found = {}
    for name, content in files.items():
        with Image.open(BytesIO(content)) as image:
            found[name] = content, np.asarray(image.convert("RGBA"), dtype=float)
    return found


FILES = transparent_files()


def levels_of(content, **decoding):
    return np.asarray(decode(BytesIO(content), how=Decoding(**decoding)).pixels, dtype=float)


@over
@pytest.mark.parametrize("name", FILES)
def test_an_image_is_laid_over_a_color(name, alpha):
    content, stands_for = FILES[name]
    share = stands_for[:, :, 3:] / 255
    assert 0 <= share.min() < share.max()
    expected = share * stands_for[:, :, :3] + (1 - share) * BACKGROUNDS[alpha]
    found = levels_of(content, alpha=alpha)
    assert np.abs(found - expected).max() <= 1
    assert (found[share[:, :, 0] == 0] == BACKGROUNDS[alpha]).all()
    opaque = share[:, :, 0] == 1
    assert (found[opaque] == stands_for[:, :, :3][opaque]).all()
    gray = levels_of(content, channels=1, alpha=alpha)
    assert np.array_equal(gray, np.asarray(Image.fromarray(found.astype(np.uint8)).convert("L")))
    assert decode(BytesIO(content), how=Decoding(alpha=alpha)).pil_only


@pytest.mark.parametrize("name", FILES)
def test_by_default_colors_stay_as_they_are_stored(name):
    content, stands_for = FILES[name]
    assert np.array_equal(levels_of(content), stands_for[:, :, :3])
    assert np.array_equal(levels_of(content, alpha="drop"), stands_for[:, :, :3])


@over
def test_what_has_no_alpha_stays_as_it_is(alpha):
    photo = Image.fromarray(smooth_levels(channels=3))
    for content in (encoded("PNG", photo), encoded("JPEG", photo), encoded("PNG", photo.convert("L"))):
        ours = decode(BytesIO(content), how=Decoding(alpha=alpha))
        theirs = decode(BytesIO(content))
        assert (ours.pixels.tobytes(), ours.pil_only) == (theirs.pixels.tobytes(), False)


def test_of_four_channels_alpha_is_one():
    with pytest.raises(ValueError, match="--alpha white is for gray and RGB: the encoder takes 4 channels as they are"):
        Decoding(channels=4, alpha="white")


@pytest.mark.parametrize("alpha", ["drop", "white"])
def test_both_loaders_read_it_so(tmp_path, alpha):
    """DALI drops alpha alike; what is laid over a color is decoded by PIL for it."""
    pytest.importorskip("nvidia.dali")
    for i, name in enumerate(("a.png", "gray.png")):
        (tmp_path / f"{i}.png").write_bytes(FILES[name][0])
    Image.fromarray(smooth_levels(64, 48, channels=3)).save(tmp_path / "opaque.png")
    images = checked_images(tmp_path, alpha=alpha)
    assert images.pil_only.tolist() == [alpha == "white"] * 2 + [False]
    layout = StepLayout.uniform(image_size=16, batch_size=12, micro_batch=12)
    data = MicroBatches(images=images, augment=RandomResizedCrop(interpolation="bilinear"), seed=1, layout=layout)
    (ours,) = DaliLoader(threads=2, device=torch.device("cpu")).batches(data, 0, 1)
    away = (ours.images.int() - pil.decode(data, 0).images.int()).abs()
    assert away.max() <= 2
    assert alpha != "white" or away[torch.from_numpy(data[0].pil_only)].max() == 0


def test_it_is_checked_again_where_alpha_is_read_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    rgba().save(tmp_path / "photos" / "a.png")
    for alpha in ("drop", "white", "black", "drop"):
        images = checked_images(tmp_path / "photos", alpha=alpha)
        assert images.decoding == Decoding(alpha=alpha)
        assert images.pil_only.tolist() == [alpha != "drop"]

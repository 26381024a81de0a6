"""DALI against PIL, pixel by pixel, and which of the two a run takes."""

import gc
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress

import commands
import numpy as np
import pytest
import torch
from checked import away_from_edges, checked_images, upright
from PIL import Image
from source_forms import write_tars

from bimkern.data import pil
from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches
from bimkern.data.loader import DaliLoader, LoaderError, PilLoader, choose_loader
from bimkern.data.sources.find import find_source
from bimkern.data.step_layout import StepLayout
from bimkern.recipes import RECIPES
from bimkern.train.training import find_inputs
from bimkern.watchdog import Interrupted, stopped_by

CPU = torch.device("cpu")
CROP = RandomResizedCrop()
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
each_filter = pytest.mark.parametrize("interpolation", FILTERS)
SIZES = [(1, 1), (1, 7), (5, 1), (2, 3), (3, 2), (37, 53), (97, 41), (150, 200)]
FORMATS = {"jpg": {"quality": 90}, "png": {}, "webp": {"quality": 90}, "progressive.jpg": {"progressive": True}}
MODES = ("1", "L", "LA", "P", "RGBA")


def picture(width, height):
    """Coarse noise, smoothed: all gray levels, with edges, at any size."""
    levels = torch.randint(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=torch.uint8)
    return Image.fromarray(levels.numpy()).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Every size in every format, every color mode, every EXIF orientation in every format."""
    for suffix, options in FORMATS.items():
        for width, height in SIZES:
            picture(width, height).save(tmp_path / f"{width}x{height}.{suffix}", **options)
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            picture(60, 40).save(tmp_path / f"turned_{orientation}.{suffix}", exif=exif, **options)
    for mode in MODES:
        image = picture(100, 80)
        if mode.endswith("A"):
            image.putalpha(picture(100, 80).convert("L"))
        image.convert(mode).save(tmp_path / f"mode_{mode}.png")
    picture(100, 80).convert("L").save(tmp_path / "gray.jpg")
    return tmp_path


def batches(folder, size, augment=CROP):
    """All images in one batch, cropped at new places in every test run."""
    images = checked_images(folder)
    layout = StepLayout.uniform(image_size=size, batch_size=len(images), micro_batch=len(images))
    return MicroBatches(images=images, augment=augment, seed=torch.initial_seed(), layout=layout)


def exact(image, box, size, interpolation="bicubic"):
    """Resize a box in floating point, the edge of the image replicated as DALI does."""
    left, top, width, height = box.tolist()
    margin = 2 * max(width, height, size) // size + 4
    pixels = np.pad(np.asarray(image, dtype=np.float32), [(margin, margin), (margin, margin), (0, 0)], mode="edge")
    corners = (left + margin, top + margin, left + width + margin, top + height + margin)
    channels = [
        np.asarray(Image.fromarray(pixels[..., c]).resize((size, size), FILTERS[interpolation], corners))
        for c in range(3)
    ]
    return np.stack(channels).clip(0, 255)


@each_filter
@pytest.mark.parametrize("size", [7, 16, 64])
def test_dali_gives_the_exact_result_rounded(folder, size, interpolation):
    pytest.importorskip("nvidia.dali")
    data = batches(folder, size, RandomResizedCrop(interpolation=interpolation))
    (batch,) = DaliLoader(threads=2, device=CPU).batches(data, 0, 1)
    crops = data[0]
    assert np.array_equal(batch.draw_ids, crops.draw_ids)
    for pixels, sample_id, box, flip in zip(batch.images, crops.sample_ids, crops.boxes, crops.flips, strict=True):
        if data.images.pil_only[sample_id]:
            continue  # test_loaders_agree.py
        expected = exact(upright(data.images.path(sample_id)), box, size, interpolation)
        difference = np.abs(pixels.numpy() - (expected[..., ::-1] if flip else expected)).max()
        assert difference < 1, f"{data.images.files[sample_id]}, box {box}: {difference} levels"


@each_filter
@pytest.mark.parametrize("size", [16, 64])
def test_dali_and_pil_agree_but_for_edges_and_overshoot(tmp_path, size, interpolation):
    """Within 2 levels: PIL rounds and clips between its two passes, and drops what lies beyond the image's edge."""
    pytest.importorskip("nvidia.dali")
    for i, suffix in enumerate(("jpg", "png", "webp") * 10):
        muted = picture(300, 200).point(lambda level: 64 + level // 2)  # a cubic filter overshoots by less
        muted.save(tmp_path / f"{i}.{suffix}")
    data = batches(tmp_path, size, RandomResizedCrop(scale=(0.1, 0.3), interpolation=interpolation))
    (ours,) = DaliLoader(threads=2, device=CPU).batches(data, 0, 1)
    theirs = pil.decode(data, 0)
    assert torch.equal(ours.draw_ids, theirs.draw_ids)
    difference = (ours.images.int() - theirs.images.int()).abs()[torch.from_numpy(away_from_edges(data))]
    assert len(difference) > 5
    assert difference.max() <= 2
    assert difference.float().mean() < 0.25


@pytest.mark.parametrize("regions", [True, False])
def test_a_gpu_decodes_the_same_crops(folder, regions, gpu):
    pytest.importorskip("nvidia.dali")
    data = batches(folder, 64)
    (ours,) = DaliLoader(threads=2, device=gpu, regions=regions).batches(data, 0, 1)
    assert ours.images.device.type == "cuda"
    assert (ours.images.cpu().float() - pil.decode(data, 0).images).abs().mean() < 2  # other JPEG decoders


def test_batches_are_prepared_ahead(folder, monkeypatch):
    pytest.importorskip("nvidia.dali")
    planned = []
    plan = MicroBatches.__getitem__
    monkeypatch.setattr(MicroBatches, "__getitem__", lambda data, index: planned.append(index) or plan(data, index))
    loaded = DaliLoader(threads=1, device=CPU).batches(batches(folder, 16), 5, 20)
    next(loaded)
    assert planned == [5, 6, 7]
    next(loaded)
    assert planned == [5, 6, 7, 8]


@pytest.fixture
def no_dali(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali.plugin.pytorch.torch_utils", None)


def test_auto_is_pil_on_a_cpu():
    loader, line = choose_loader("auto", CPU, 3)
    assert loader == PilLoader(workers=3)
    assert line == "PIL in 3 processes, the faster one on a CPU"


def test_auto_is_dali_for_a_gpu(gpu):
    pytest.importorskip("nvidia.dali")
    loader, line = choose_loader("auto", gpu, 3)
    assert loader == DaliLoader(threads=3, device=gpu, regions=loader.regions)
    assert line.startswith("DALI, decodes, crops, resizes and flips on cuda")


def test_a_dali_that_loads_and_cannot_run_on_the_gpu_is_a_reason():
    pytest.importorskip("nvidia.dali")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    loader, line = choose_loader("auto", torch.device("cuda"), 2)
    assert loader == PilLoader(workers=2, pin_memory=True)
    assert line.startswith("PIL in 2 processes, as DALI cannot be used (")
    with pytest.raises(LoaderError, match="--loader dali: DALI cannot be used"):
        choose_loader("dali", torch.device("cuda"), 2)


def test_auto_is_pil_where_images_are_arrays(monkeypatch):
    monkeypatch.setattr("bimkern.data.dali.unusable", lambda device: None)
    monkeypatch.setattr("bimkern.data.regions.unusable", lambda device: None)
    gpu = torch.device("cuda")
    loader, line = choose_loader("auto", gpu, 2, arrays=True)
    assert loader == PilLoader(workers=2, pin_memory=True)
    assert line == (
        "PIL in 2 processes, as DALI decodes no arrays and would leave them to PIL, in threads of the training process"
    )
    assert isinstance(choose_loader("dali", gpu, 2, arrays=True)[0], DaliLoader)  # it is asked for
    assert isinstance(choose_loader("auto", gpu, 2)[0], DaliLoader)


def test_a_run_tells_it_whether_they_are(folder, tmp_path, monkeypatch):
    asked = []

    def choose(*args, arrays, **kept):
        asked.append(arrays)
        return PilLoader(workers=0), ""

    monkeypatch.setattr("bimkern.train.training.choose_loader", choose)
    config = RECIPES["mae_vit_test"].config
    write_tars(folder, tmp_path / "shards")
    np.save(tmp_path / "x.npy", np.zeros((3, 30, 30, 3), np.uint8))
    for place in (folder, tmp_path / "shards", tmp_path / "x.npy"):
        find_inputs(config, find_source(place))
    assert asked == [False, False, True]


def test_auto_says_why_it_is_not_dali(no_dali):
    loader, line = choose_loader("auto", torch.device("cuda"), 2)
    assert loader == PilLoader(workers=2, pin_memory=True)
    assert line.startswith("PIL in 2 processes, as DALI cannot be used (import of nvidia.dali")
    assert line.endswith("; pip install 'bimkern[dali]'")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_loader_asked_for_by_name_is_taken_or_refused(device, no_dali):
    device = torch.device(device)
    assert isinstance(choose_loader("pil", device, 1)[0], PilLoader)
    with pytest.raises(LoaderError, match=r"--loader dali: DALI cannot be used \(import of .*pip install"):
        choose_loader("dali", device, 1)


def test_a_dali_that_does_not_load_is_a_reason(tmp_path):
    package = tmp_path / "nvidia" / "dali"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("raise OSError('libdali.so: cannot open shared object file\\nand more')")
    command = [sys.executable, "-c", "from bimkern.data.dali import unusable; print(unusable())"]
    found = commands.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert found.stdout == "libdali.so: cannot open shared object file\n"


@contextmanager
def hung_file(tmp_path):
    """Opening a pipe takes until a writer opens it, as opening a file on a dead disk takes for ever."""
    pytest.importorskip("nvidia.dali")
    picture(40, 30).save(tmp_path / "one.jpg")
    loaded = DaliLoader(threads=1, device=CPU).batches(batches(tmp_path, 16), 0, 1000)
    next(loaded)
    (tmp_path / "one.jpg").rename(tmp_path / "file")
    os.mkfifo(tmp_path / "one.jpg")
    try:
        yield loaded
    finally:  # lets DALI's threads go: they hold a lock of the process, for which every later test would wait
        (tmp_path / "one.jpg").rename(tmp_path / "pipe")
        (tmp_path / "file").rename(tmp_path / "one.jpg")
        (tmp_path / "pipe").write_bytes(b"")


def test_a_crop_of_pils_that_hangs_does_not_hold_up_the_end(tmp_path, monkeypatch):
    pytest.importorskip("nvidia.dali")
    picture(40, 30).save(tmp_path / "one.gif")
    plain, calls, hangs, gate = pil.crop, iter(range(10**6)), threading.Event(), threading.Event()

    def crop(*arguments):
        if next(calls) > 0:  # of a batch ahead
            hangs.set()
            gate.wait(120)
        return plain(*arguments)

    monkeypatch.setattr(pil, "crop", crop)
    loaded = DaliLoader(threads=1, device=CPU).batches(batches(tmp_path, 16), 0, 1000)
    next(loaded)
    assert hangs.wait(10)
    begin = time.monotonic()
    try:
        loaded.close()
        assert time.monotonic() - begin < 5
    finally:
        gate.set()


def test_a_dali_that_hangs_does_not_hold_up_the_end(tmp_path):
    with hung_file(tmp_path) as loaded:
        begin = time.monotonic()
        with suppress(Interrupted), stopped_by(lambda: time.monotonic() > begin + 1):
            next(loaded)  # has the pipe opened, for the next batch or for this one
        begin = time.monotonic()
        loaded.close()
        gc.collect()
        assert time.monotonic() - begin < 5


def test_a_dali_that_hangs_does_not_hold_up_a_stop(tmp_path):
    begin, seen = time.monotonic(), []
    with hung_file(tmp_path) as loaded:
        with pytest.raises(Interrupted), stopped_by(lambda: time.monotonic() > begin + 1):
            seen.extend(loaded)
        assert len(seen) < 10  # that were under way
        assert time.monotonic() - begin < 5

"""The resilient loader: images that go bad are replaced by rule, and a loader that dies is started again."""

import errno
import multiprocessing
import os
import resource
import signal
from collections import Counter
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from bad_files import encoded, picture
from checked import checked_images
from PIL import Image

from bimkern.data.augment import RandomResizedCrop, replacements, sample_sequence
from bimkern.data.batches import MicroBatches
from bimkern.data.dali import DaliLoader
from bimkern.data.decoding import decode, stored_size
from bimkern.data.formats import BadImage, OutOfResources
from bimkern.data.pil import PilLoader
from bimkern.data.resilient_loader import LoadingFailed, ResilientLoader
from bimkern.data.sources.image_folder import ImageFolder
from bimkern.data.step_layout import StepLayout
from bimkern.data.workers import WorkerDied, ahead

CPU = torch.device("cpu")
FAULTS = ("garbage", "garbage jpeg", "half", "empty", "gone", "other size")


def plan(folder, **changes):
    layout = StepLayout.uniform(**{"image_size": 16, "batch_size": 6, "micro_batch": 4} | changes)
    return MicroBatches(images=checked_images(folder), augment=RandomResizedCrop(), seed=3, layout=layout)


def without(data, *sample_ids):
    return replace(data, images=replace(data.images, unreadable=frozenset(sample_ids)))


def spoil(path, fault):
    content = path.read_bytes()
    path.unlink()
    if fault == "other size":
        picture(21, 22).save(path)
    elif fault != "gone":
        contents = {"garbage": bytes(range(256)) * 4, "garbage jpeg": content[:20] + bytes(999), "empty": b""}
        path.write_bytes(contents.get(fault, content[: len(content) // 2]))


class Told:
    """The bad files that a loader reported."""

    def __init__(self):
        self.calls = []

    def __call__(self, faults, steps_done):
        self.calls.append((faults, steps_done))


def assert_same_steps(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        for batch, expected in zip(one, other, strict=True):
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.draw_ids, expected.draw_ids)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_goes_bad_is_reported_and_replaced_by_rule(folder, loader, fault, workers):
    data, told = plan(folder), Told()
    spoil(folder / "5.jpg", fault)
    loading = ResilientLoader(loader(workers), data, told)
    steps = list(loading.steps(0, 6))
    ((faults, steps_done),) = told.calls
    assert faults.keys() == {"5.jpg"}
    assert faults["5.jpg"]
    _, ids = sample_sequence(0, 36, 9, data.seed)
    assert steps_done == ids.tolist().index(5) // 6
    # The same as if it had been known from the start: so a resumed run continues alike.
    assert_same_steps(steps, ResilientLoader(loader(0), without(data, 5), pytest.fail).steps(0, 6))
    assert loading.data.images.unreadable == {5}


class BadSectors(BytesIO):
    """A file of which some reads fail."""

    def __init__(self, content, good_reads, error):
        super().__init__(content)
        self.good_reads, self.error = good_reads, error

    def read(self, size=-1):
        self.good_reads -= 1
        if self.good_reads < 0:
            raise self.error
        return super().read(size)


class OnBadDisk(ImageFolder):
    def open(self, file):
        content = super().open(file)
        return BadSectors(content.read(), 0, OSError(errno.EIO, "bad sector")) if file == "5.jpg" else content


@pytest.mark.parametrize("good_reads", [0, 1, 2])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad sector"), ZeroDivisionError("bad sector")], ids=repr)
def test_any_error_while_a_file_is_read_makes_a_bad_image(good_reads, error):
    array = BytesIO()
    np.save(array, np.zeros((4, 5, 3), np.uint8))
    for content in (encoded("JPEG"), encoded("TIFF"), array.getvalue()):
        with pytest.raises(BadImage, match="bad sector"):
            decode(BadSectors(content, good_reads, error))
    with pytest.raises(BadImage, match="bad sector"):
        stored_size(BadSectors(encoded("JPEG"), good_reads, error))


def test_without_handles_to_read_with_no_image_is_blamed():
    with pytest.raises(OutOfResources):
        decode(BadSectors(encoded("JPEG"), 0, OSError(errno.EMFILE, "too many open files")))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_opens_and_cannot_be_read_is_replaced(folder, workers):
    data, told = plan(folder), Told()
    data = replace(data, images=replace(data.images, source=OnBadDisk(paths=(folder,))))
    steps = list(ResilientLoader(PilLoader(workers=workers), data, told).steps(0, 6))
    assert [faults for faults, _ in told.calls] == [{"5.jpg": "bad sector"}]
    assert_same_steps(steps, ResilientLoader(PilLoader(workers=0), without(data, 5), pytest.fail).steps(0, 6))


def test_everything_else_stays_as_it_was(folder):
    data = plan(folder, batch_size=9, micro_batch=9)
    for index in range(20):
        before, after = data[index], without(data, 2, 5)[index]
        assert np.array_equal(before.draw_ids, after.draw_ids)
        assert np.array_equal(before.flips, after.flips)
        due = np.isin(before.sample_ids, [2, 5])
        assert due.sum() == 2
        assert np.array_equal(before.sample_ids[~due], after.sample_ids[~due])
        assert np.array_equal(before.boxes[~due], after.boxes[~due])
        assert not np.isin(after.sample_ids, [2, 5]).any()


def test_replacements_are_uniform_over_what_is_readable_and_stay_when_more_goes_bad():
    draws = np.arange(8000, dtype=np.int64)
    ids = np.full_like(draws, 3)
    one = replacements(draws, ids, frozenset({3}), 5, seed=7)
    counts = Counter(one.tolist())
    assert counts.keys() == {0, 1, 2, 4}
    assert all(abs(count - 2000) < 5 * 2000**0.5 for count in counts.values())
    two = replacements(draws, ids, frozenset({3, 0}), 5, seed=7)
    assert np.array_equal(one[one != 0], two[one != 0])
    assert set(two[one == 0].tolist()) == {1, 2, 4}


def test_files_may_go_bad_one_after_the_other_until_it_is_too_many(folder, loader):
    def too_many(faults, steps_done):
        told(faults, steps_done)
        if sum(len(faults) for faults, _ in told.calls) == 3:
            raise ValueError("that is enough")

    data, told = plan(folder, batch_size=3, micro_batch=3), Told()
    steps = ResilientLoader(loader(1), data, too_many).steps(0, 1000)
    for name in ("1.jpg", "4.jpg", "8.jpg"):
        next(steps)
        spoil(folder / name, "gone")
    with pytest.raises(ValueError, match="that is enough"):
        list(steps)
    assert sorted(name for faults, _ in told.calls for name in faults) == ["1.jpg", "4.jpg", "8.jpg"]


def test_a_dali_that_fails_on_everything_is_not_blamed_on_the_images(folder, monkeypatch):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn

    def broken(*args, **kwargs):
        return fn.crop(*args, crop=(10**6, 10**6))  # DALI itself refuses it at run time

    data = plan(folder)
    monkeypatch.setattr(fn, "resize", broken)
    with pytest.raises(
        LoadingFailed, match=r"died 3 times at the same images \(DALI fails \(.*; --loader pil does without"
    ):
        list(ResilientLoader(DaliLoader(threads=1, device=CPU), data, pytest.fail).steps(0, 3))


def test_a_killed_worker_is_replaced_at_the_same_images(folder, caplog):
    data = plan(folder)
    expected = ResilientLoader(PilLoader(workers=0), data, pytest.fail).steps(0, 60)
    others = set(multiprocessing.active_children())  # that another test left to the garbage collector
    steps = ResilientLoader(PilLoader(workers=2), data, pytest.fail).steps(0, 60)
    seen = [next(steps)]
    worker, *_ = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGKILL)
    seen += steps
    assert_same_steps(seen, expected)
    assert "was ended by SIGKILL; fewer workers need less memory); it is restarted at the same images" in caplog.text


def test_a_shortage_of_file_handles_is_not_the_images_fault(folder):
    data, limits = plan(folder), resource.getrlimit(resource.RLIMIT_NOFILE)
    steps = ResilientLoader(PilLoader(workers=0), data, pytest.fail).steps(0, 9)
    next(steps)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(LoadingFailed, match="no file can be read"):
            next(steps)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("loader", [PilLoader(workers=0), PilLoader(workers=1), DaliLoader(threads=1, device=CPU)])
def test_a_shortage_of_memory_is_not_the_images_fault(tmp_path, monkeypatch, loader):
    """There is memory to decode an image, and none for what comes after it."""
    if isinstance(loader, DaliLoader):
        pytest.importorskip("nvidia.dali")
    for i in range(3):
        picture(20, 20, seed=i).save(tmp_path / f"{i}.gif")  # which DALI leaves to PIL
    data = plan(tmp_path)

    def out_of_memory(*arguments, **options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", out_of_memory)
        with pytest.raises(LoadingFailed, match=r"the loader died 3 times at the same images \(out of memory\)"):
            next(ResilientLoader(loader, data, pytest.fail).steps(0, 9))
    assert len(next(ResilientLoader(loader, data, pytest.fail).steps(0, 9))) == 2


def test_no_image_that_can_be_read_is_the_end(folder):
    data = plan(folder)
    for file in folder.glob("*.jpg"):
        spoil(file, "gone")
    with pytest.raises(LoadingFailed, match="none of 9 images can be read any more"):
        list(ResilientLoader(PilLoader(workers=0), data, Told()).steps(0, 9))


def test_a_loader_that_keeps_dying_is_given_up(folder):
    class Dying:
        def batches(self, data, first, last):
            yield from PilLoader(workers=0).batches(data, first, min(last, 3))
            raise WorkerDied("killed")

    seen, steps = [], ResilientLoader(Dying(), plan(folder), pytest.fail).steps(0, 9)
    with pytest.raises(LoadingFailed, match=r"the loader died 3 times at the same images \(killed\)"):
        seen.extend(steps)
    assert len(seen) == 1


def test_a_death_shows_where_the_next_item_is_awaited_and_nowhere_else():
    """torch's own handler would raise here, in the middle of whatever the program does."""
    before = signal.getsignal(signal.SIGCHLD)
    items = ahead(lambda i: i, range(100), workers=1, prefetch=2)
    assert next(items) == 0
    assert signal.getsignal(signal.SIGCHLD) == before
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)
    assert sum(range(10**6)) > 0
    with pytest.raises(WorkerDied):
        list(items)


def test_an_error_of_ours_is_not_taken_for_a_death():
    def work(i):
        raise RuntimeError("a mistake")

    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="a mistake") as raised:
            list(ahead(work, range(3), workers=workers, prefetch=1))
        assert not isinstance(raised.value, WorkerDied)

"""A run whose image size and batch change: nothing is dropped, and every loader follows from any step on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checked import checked_images

from bimkern.data.augment import RandomResizedCrop, sample_sequence
from bimkern.data.batches import MicroBatches
from bimkern.data.resilient_loader import ResilientLoader
from bimkern.data.step_layout import Segment, StepLayout

# Steps 0 to 3, 4 to 6, and from 7 on: the size changes with and without the batch, and grows and shrinks.
LAYOUT = StepLayout(
    (
        Segment(image_size=16, batch_size=6, micro_batch=4),
        Segment(image_size=24, batch_size=6, micro_batch=2, first_step=4, first_image=24, first_index=8),
        Segment(image_size=8, batch_size=5, micro_batch=5, first_step=7, first_image=42, first_index=17),
    ),
    num_steps=10,
)
SIZES = [16] * 4 + [24] * 3 + [8] * 3
PARTS = [2] * 4 + [3] * 3 + [1] * 3


def plan(folder, layout=LAYOUT):
    return MicroBatches(images=checked_images(folder), augment=RandomResizedCrop(), seed=3, layout=layout)


def steps_of(loader, data, first, last, told=lambda faults, step: pytest.fail(str(faults))):
    return list(ResilientLoader(loader, data, told).steps(first, last))


def assert_same_steps(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        for batch, expected in zip(one, other, strict=True):
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.draw_ids, expected.draw_ids)


def test_every_micro_batch_has_its_place():
    index = 0
    for step, parts in enumerate(PARTS):
        assert LAYOUT.index(step) == index
        for part in range(parts):
            assert LAYOUT.locate(index) == (LAYOUT.at(step), step, part)
            index += 1
    assert [LAYOUT.at(step).image_size.height for step in range(10)] == SIZES
    assert [LAYOUT.image(step) for step in range(11)] == [0, 6, 12, 18, 24, 30, 36, 42, 47, 52, 57]


def test_a_layout_without_changes_is_the_plain_one(folder):
    layout = StepLayout.uniform(image_size=16, batch_size=6, micro_batch=4)
    again = replace(layout.segments[0], first_step=3, first_image=18, first_index=6)
    one, other = plan(folder, layout), plan(folder, StepLayout((*layout.segments, again), 10))
    for index in range(12):
        for name, value in vars(one[index]).items():
            assert np.array_equal(value, getattr(other[index], name))


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_follow_and_nothing_is_dropped(folder, loader, workers):
    data = plan(folder)
    steps = steps_of(loader(workers), data, 0, 10)
    assert [len(parts) for parts in steps] == PARTS
    for parts, size in zip(steps, SIZES, strict=True):
        assert all(part.images.shape[1:] == (3, size, size) for part in parts)
    ids = torch.cat([part.draw_ids for parts in steps for part in parts]) & (2**40 - 1)
    assert ids.tolist() == sample_sequence(0, LAYOUT.image(10), 9, data.seed)[1].tolist()


@pytest.mark.parametrize("first", [3, 4, 5, 7])
def test_a_start_at_any_step_continues_alike(folder, loader, first):
    data = plan(folder)
    assert_same_steps(steps_of(loader(1), data, first, 9), steps_of(loader(1), data, 0, 9)[first:])


def test_every_size_is_loaded_as_in_a_run_without_changes(folder, loader):
    steps = steps_of(loader(1), plan(folder), 0, 10)
    for segment, last in zip(LAYOUT.segments, (4, 7, 10), strict=True):
        alone = plan(folder, StepLayout((segment,), 10))
        assert_same_steps(steps[segment.first_step : last], steps_of(loader(1), alone, segment.first_step, last))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["garbage", "gone"])
def test_a_file_found_bad_behind_a_change_is_reported_and_replaced_by_rule(folder, loader, fault, workers):
    data, told = plan(folder), []
    first = 3
    ids = sample_sequence(LAYOUT.image(first), 9, 9, data.seed)[
        1
    ].tolist()  # an epoch begins here: its last image comes latest
    bad, step = ids[-1], 4
    assert LAYOUT.image(step) <= LAYOUT.image(first) + 8 < LAYOUT.image(step + 1)
    path = data.images.path(bad)
    path.unlink()
    if fault == "garbage":
        path.write_bytes(bytes(range(256)) * 4)
    steps = steps_of(loader(workers), data, first, 10, lambda faults, step: told.append((list(faults), step)))
    assert told == [([path.name], step)]
    known = replace(data, images=replace(data.images, unreadable=frozenset({bad})))
    assert_same_steps(steps, steps_of(loader(0), known, first, 10))

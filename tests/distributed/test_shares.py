"""Ranks share every step: each its part of the images, in micro-batches of its own."""

from dataclasses import replace

import numpy as np
import pytest
from bad_files import picture
from checked import checked_images

from bimkern.data.augment import RandomResizedCrop
from bimkern.data.batches import MicroBatches, step_draw_ids
from bimkern.data.step_layout import Segment, StepLayout

LAYOUT = StepLayout(
    (
        Segment(image_size=16, batch_size=7, micro_batch=2),
        Segment(image_size=24, batch_size=5, micro_batch=5, first_step=3, first_image=21, first_index=12),
    ),
    num_steps=6,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(11):
        picture(seed=i).save(folder / f"{i}.png")
    images = checked_images(folder)
    return MicroBatches(images=images, augment=RandomResizedCrop(), seed=3, layout=LAYOUT)


def draws(data, step):
    layout = data.layout
    return [data[layout.index(step) + i].draw_ids for i in range(layout.at(step).per_step)]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_shares_of_a_step_are_the_step(data, size):
    of_ranks = [replace(data, layout=LAYOUT.of_rank(rank, size)) for rank in range(size)]
    for step in range(LAYOUT.num_steps):
        whole = np.concatenate(draws(data, step))
        shares = [draws(mine, step) for mine in of_ranks]
        np.testing.assert_array_equal(np.concatenate([part for share in shares for part in share]), whole)
        np.testing.assert_array_equal(step_draw_ids(of_ranks[-1].layout, step, 11, 3), whole)
        counts = [sum(map(len, share)) for share in shares]
        assert max(counts) - min(counts) <= 1
        assert all(len(part) <= LAYOUT.at(step).micro_batch for share in shares for part in share)


def test_one_rank_has_the_layout_of_one_process():
    assert LAYOUT.of_rank(0, 1) == LAYOUT


def test_a_rank_without_an_image_is_refused():
    with pytest.raises(ValueError, match="steps of 5 images cannot be shared by 6 ranks"):
        LAYOUT.of_rank(0, 6)

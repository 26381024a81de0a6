"""The streams that random numbers are drawn from."""

import re
from pathlib import Path

import numpy as np
import torch

from bimkern.rng import Stream, draw, philox4x32

HEADER = Path(__file__).resolve().parent.parent / "csrc/ops/random_keep.h"


def test_streams_keep_their_numbers():
    """Runs of other versions are resumed with the same draws; a new stream takes a number that no other has."""
    numbers = {"MASK": 0, "CROP": 1, "FLIP": 2, "ORDER": 3, "REPLACEMENT": 4, "RECTANGLE": 5, "STEP": 6}
    numbers |= {"AUGMENT": 7, "ERASE": 8, "MIX": 9, "DROP_PATH": 10, "CHOICE": 11, "DROPOUT": 12}
    assert {stream.name: stream.value for stream in Stream} == numbers
    assert len(Stream.__members__) == len(set(Stream))  # an alias would be a member, and no stream of its own


def test_the_native_kernel_draws_from_the_same_streams():
    numbers = {name: int(number) for name, number in re.findall(r"k(\w+)Stream = (\d+);", HEADER.read_text())}
    assert numbers == {"Mask": Stream.MASK.value, "Step": Stream.STEP.value}


def test_a_draw_is_a_block_of_its_stream_and_id():
    ids = np.array([0, -1, 2**40 + 3])
    counters = np.arange(5)
    drawn = draw(Stream.CROP, counters, ids[:, None], 2**63 + 5)
    for i, sample_id in enumerate(ids.tolist()):
        for j in range(5):
            words = [torch.tensor([word]) for word in (j, 1, sample_id & 0xFFFFFFFF, (sample_id >> 32) & 0xFFFFFFFF)]
            assert [int(word[i, j]) for word in drawn] == [int(w) for w in philox4x32(*words, 2**63 + 5)]

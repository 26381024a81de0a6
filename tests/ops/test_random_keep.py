"""random_keep and the generator behind it."""

import numpy as np
import pytest
import torch

from bimkern.ops import random_keep
from bimkern.ops.philox import philox4x32

# Random123's known answers: counter, key (two words), result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
@pytest.mark.parametrize("make", [torch.tensor, np.array], ids=["torch", "numpy"])
def test_philox_gives_the_known_answers(make, counter, key, answer):
    words = philox4x32(*(make([word]) for word in counter), key[0] | key[1] << 32)
    assert tuple(int(word[0]) for word in words) == answer


def test_keeps_are_sorted_distinct_and_complete(device):
    keep = random_keep(torch.arange(50, device=device), 197, 49, seed=3)
    assert keep.shape == (50, 49)
    assert keep.dtype == torch.int64
    assert (keep.diff(dim=1) > 0).all()
    assert keep.min() >= 0
    assert keep.max() < 197


def test_a_draw_depends_on_seed_and_sample_alone(device):
    ids = torch.tensor([5, 2**40 + 5, 7, 5], device=device)
    keep = random_keep(ids, 64, 16, seed=1)
    assert torch.equal(keep[0], keep[3])
    assert not torch.equal(keep[0], keep[1])  # the high word counts
    assert torch.equal(random_keep(ids[2:3], 64, 16, seed=1)[0], keep[2])  # the batch does not
    assert not torch.equal(random_keep(ids, 64, 16, seed=1 + 2**32), keep)  # nor is the seed cut to 32 bits


def test_every_token_is_kept_equally_often(device):
    draws, tokens, kept = 20000, 13, 4
    keep = random_keep(torch.arange(draws, device=device), tokens, kept, seed=0)
    share = keep.flatten().bincount(minlength=tokens) / draws
    sigma = (kept / tokens * (1 - kept / tokens) / draws) ** 0.5
    assert (share - kept / tokens).abs().max() < 5 * sigma


def test_every_subset_is_drawn_equally_often(device):
    draws = 30000
    keep = random_keep(torch.arange(draws, device=device), 5, 2, seed=9)
    counts = (keep[:, 0] * 5 + keep[:, 1]).bincount(minlength=25)
    counts = counts[counts > 0].double()
    assert len(counts) == 10
    chi_square = ((counts - draws / 10).square() / (draws / 10)).sum()
    assert chi_square < 33.7  # 9 degrees of freedom, one in 10**4


def test_a_child_lies_inside_its_parent_and_says_where(device):
    ids = torch.arange(20, device=device)
    parent = random_keep(ids, 196, 68, seed=4)
    keep, within = random_keep(ids, 196, 58, seed=4, parent=parent)
    assert torch.equal(parent.gather(1, within), keep)
    assert (keep.diff(dim=1) > 0).all()
    assert torch.equal(keep, random_keep(ids, 196, 58, seed=4))  # one seed: smaller draws are nested


@pytest.mark.parametrize(("num_tokens", "num_keep"), [(1, 1), (1, 0), (7, 7), (196, 0)])
def test_odd_counts(device, num_tokens, num_keep):
    keep = random_keep(torch.arange(3, device=device), num_tokens, num_keep, seed=0)
    assert keep.shape == (3, num_keep)
    if num_keep == num_tokens:
        assert torch.equal(keep, torch.arange(num_tokens, device=device).expand(3, -1))


def test_no_samples(device):
    assert random_keep(torch.empty(0, dtype=torch.int64, device=device), 9, 3, seed=0).shape == (0, 3)


def test_compiles_without_a_graph_break(device):
    ids = torch.arange(6, device=device)
    draw = torch.compile(lambda ids: random_keep(ids, 30, 11, seed=5), fullgraph=True, backend="aot_eager")
    assert torch.equal(draw(ids), random_keep(ids, 30, 11, seed=5))


def test_says_what_is_wrong(device):
    ids = torch.arange(4, device=device)
    with pytest.raises(ValueError, match=r"random_keep: num_keep must be in \[0, num_tokens=9\], got 10"):
        random_keep(ids, 9, 10, seed=0)
    with pytest.raises(ValueError, match=r"random_keep: num_keep must be in \[0, P=3\], got 4"):
        random_keep(ids, 9, 4, seed=0, parent=random_keep(ids, 9, 3, seed=0))
    with pytest.raises(TypeError, match="random_keep: sample_ids must be int64, got int32"):
        random_keep(ids.int(), 9, 3, seed=0)
    with pytest.raises(ValueError, match=r"random_keep: parent must be \[B=4, P\], got \[2, 3\]"):
        random_keep(ids, 9, 2, seed=0, parent=torch.zeros(2, 3, dtype=torch.int64, device=device))

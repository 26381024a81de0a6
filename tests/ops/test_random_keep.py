"""random_keep and the generator behind it."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from bimkern.ops import random_keep
from bimkern.ops.random_keep import random_keep_reference, token_priorities
from bimkern.rng import philox4x32

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


IDS = (0, 1, -1, 7, -(2**63), 2**63 - 1, 2**32, 2**40 + 3)
SEEDS = (0, 3, -1, 2**32, 2**63 - 1, -(2**63), 2**63 + 5, 2**64 - 2)
DEFAULT = {"N": 196, "K": 49, "P": None}
CASES = [
    *(DEFAULT | {"K": K} for K in (0, 1, 195, 196)),
    *(
        {"N": N, "K": K, "P": None}
        for N, K in ((0, 0), (1, 0), (1, 1), (2, 1), (64, 16), (65, 64), (197, 31), (256, 64))
    ),
    {"N": 5000, "K": 1250, "P": None},  # beyond what one pass over a block of threads holds
    {"N": 70001, "K": 9, "P": None},
    *({"N": 196, "K": K, "P": P} for K, P in ((58, 68), (0, 68), (68, 68), (1, 196), (0, 0))),
    {"N": 20000, "K": 3000, "P": 9000},
]


def draw_parent(ids, N, P):
    return torch.rand(len(ids), N, device=ids.device).argsort(dim=1)[:, :P].sort(dim=1).values


def assert_equals_reference(ids, N, K, seed, parent=None):
    got = random_keep(ids, N, K, seed=seed, parent=parent)
    want = random_keep_reference(ids, N, K, seed, parent)
    if parent is None:
        got, want = (got,), (want,)
    assert all(ours.dtype == torch.int64 and torch.equal(ours, torchs) for ours, torchs in zip(got, want, strict=True))


@pytest.mark.parametrize("dims", CASES, ids=str)
def test_equals_reference(device, dims):
    ids = torch.tensor(IDS, device=device)
    parent = None if dims["P"] is None else draw_parent(ids, dims["N"], dims["P"])
    assert_equals_reference(ids, dims["N"], dims["K"], 3, parent)


@pytest.mark.parametrize("seed", SEEDS)
def test_equals_reference_for_every_seed(device, seed):
    assert_equals_reference(torch.randint(-(2**63), 2**63 - 1, (500,), device=device), 196, 49, seed)


def test_every_count_equals_reference(device):
    ids = torch.randint(-(2**63), 2**63 - 1, (4,), device=device)
    for N in range(40):
        for K in range(N + 1):
            assert_equals_reference(ids, N, K, N)


# Found by search: under seed 0 the K-th and the K+1-st smallest word of 2**15 tokens are the same.
@pytest.mark.parametrize(("sample_id", "K"), [(0, 3047), (11, 14815), (27, 235)])
def test_of_equal_words_the_earlier_stays(device, sample_id, K):
    N = 2**15
    ids = torch.tensor([sample_id], device=device)
    words = token_priorities(ids, N, seed=0)[0]
    smallest = words.sort().values
    assert smallest[K - 1] == smallest[K]
    first, second = (words == smallest[K]).nonzero().flatten().tolist()
    kept = random_keep(ids, N, K, seed=0)[0]
    assert first in kept
    assert second not in kept
    assert_equals_reference(ids, N, K, 0)
    assert_equals_reference(ids, N, K, 0, torch.arange(N, device=device)[None])
    assert_equals_reference(ids, N, 1, 0, torch.tensor([[first, second]], device=device))


def test_reads_any_strides(device):
    ids = torch.tensor(IDS, device=device)
    parent = draw_parent(ids, 196, 68)
    strided = ids.repeat_interleave(2)[::2]
    assert torch.equal(random_keep(strided, 196, 49, seed=1), random_keep(ids, 196, 49, seed=1))
    want = random_keep(ids, 196, 49, seed=1, parent=parent)
    for view in (parent.repeat_interleave(2, dim=1)[:, ::2], parent.mT.contiguous().mT):
        got = random_keep(strided, 196, 49, seed=1, parent=view)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    same = random_keep(ids[:1].expand(3), 196, 49, seed=1, parent=parent[:1].expand(3, -1))
    assert all(torch.equal(a, b[:1].expand(3, -1)) for a, b in zip(same, want, strict=True))


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


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(device, dynamic):
    @torch.compile(fullgraph=True, dynamic=dynamic)
    def draw(ids, seed):
        keep = random_keep(ids, 30, 11, seed=seed)
        return keep, *random_keep(ids, 30, 5, seed=seed, parent=keep)

    for B, seed in ((6, 5), (9, 6)):
        ids = torch.arange(B, device=device)
        keep, child, within = draw(ids, seed)
        assert torch.equal(keep, random_keep(ids, 30, 11, seed=seed))
        want = random_keep(ids, 30, 5, seed=seed, parent=keep)
        assert torch.equal(child, want[0])
        assert torch.equal(within, want[1])


STEPS = (0, 1, 2, 2**32 - 1, 2**32, 2**63 - 1)


@pytest.mark.parametrize("step", STEPS)
def test_equals_reference_at_every_step(device, step):
    ids = torch.tensor(IDS, device=device)
    for seed in (3, -1, 2**63 + 5):
        signed = seed - 2**64 if seed >= 2**63 else seed
        keep = random_keep(ids, 196, 49, seed=seed, step=step)
        assert torch.equal(keep, random_keep_reference(ids, 196, 49, signed, step=step))
        child = random_keep(ids, 196, 12, seed=seed, step=step, parent=keep)
        wanted = random_keep_reference(ids, 196, 12, signed, keep, step=step)
        assert all(torch.equal(a, b) for a, b in zip(child, wanted, strict=True))
        assert torch.equal(child[0], random_keep(ids, 196, 12, seed=seed, step=step))  # nested, like those of step 0


def test_every_step_draws_other_masks(device):
    ids = torch.arange(50, device=device)
    keeps = torch.stack([random_keep(ids, 64, 16, seed=1, step=step) for step in STEPS])  # [steps, B, K]
    assert torch.equal(keeps[0], random_keep(ids, 64, 16, seed=1))
    assert len(keeps.flatten(0, 1).unique(dim=0)) == len(STEPS) * 50


def test_a_token_is_kept_equally_often_over_the_steps(device):
    steps, tokens, kept = 4000, 13, 4
    ids = torch.arange(5, device=device)
    keeps = torch.stack([random_keep(ids, tokens, kept, seed=0, step=step) for step in range(steps)])
    share = keeps.flatten().bincount(minlength=tokens) / (5 * steps)
    sigma = (kept / tokens * (1 - kept / tokens) / (5 * steps)) ** 0.5
    assert (share - kept / tokens).abs().max() < 5 * sigma


def test_the_masks_of_a_step_stay_what_they_are(device):
    ids = torch.tensor([0, 1, -1], device=device)
    golden = {
        0: [[2, 3, 8, 9], [1, 3, 12, 14], [2, 4, 6, 10]],
        1: [[0, 4, 5, 6], [0, 9, 12, 13], [4, 11, 12, 13]],
        2**40 + 3: [[0, 4, 5, 10], [2, 4, 7, 13], [5, 8, 9, 13]],
    }
    for step, keep in golden.items():
        assert random_keep(ids, 16, 4, seed=7, step=step).tolist() == keep


@pytest.mark.parametrize("backend", [None, "reference"])
def test_steps_are_not_compiled_one_by_one(device, monkeypatch, backend):
    if backend is not None:
        monkeypatch.setenv("BIMKERN_BACKEND", backend)
    counter = CompileCounter()
    draw = torch.compile(lambda ids, step: random_keep(ids, 30, 11, seed=5, step=step), fullgraph=True, backend=counter)
    ids = torch.arange(6, device=device)
    for step in range(2, 14):
        assert torch.equal(draw(ids, step), random_keep(ids, 30, 11, seed=5, step=step))
    assert counter.frame_count <= 2  # the first step as a constant, then any


def test_opcheck(device):
    ids = torch.tensor(IDS, device=device)
    torch.library.opcheck(torch.ops.bimkern.random_keep.default, (ids, 30, 11, 5))
    torch.library.opcheck(torch.ops.bimkern.random_keep.parent, (ids, 30, 5, 5, draw_parent(ids, 30, 11), 7))


def test_says_what_is_wrong(device):
    ids = torch.arange(4, device=device)
    with pytest.raises(ValueError, match=r"random_keep: num_keep must be in \[0, num_tokens=9\], got 10"):
        random_keep(ids, 9, 10, seed=0)
    with pytest.raises(ValueError, match=r"random_keep: num_keep must be in \[0, P=3\], got 4"):
        random_keep(ids, 9, 4, seed=0, parent=random_keep(ids, 9, 3, seed=0))
    with pytest.raises(ValueError, match=r"random_keep: parent must hold at most num_tokens=2 ids per image, got P=3"):
        random_keep(ids, 2, 1, seed=0, parent=random_keep(ids, 9, 3, seed=0))
    with pytest.raises(TypeError, match="random_keep: sample_ids must be int64, got int32"):
        random_keep(ids.int(), 9, 3, seed=0)
    with pytest.raises(ValueError, match=r"random_keep: parent must be \[B=4, P\], got \[2, 3\]"):
        random_keep(ids, 9, 2, seed=0, parent=torch.zeros(2, 3, dtype=torch.int64, device=device))
    with pytest.raises(ValueError, match=r"random_keep: num_tokens must be in \[0, 2\*\*31\), got 2147483648"):
        random_keep(ids, 2**31, 3, seed=0)
    for step in (-1, 2**63):
        with pytest.raises(ValueError, match=rf"random_keep: step must be in \[0, 2\*\*63\), got {step}"):
            random_keep(ids, 9, 3, seed=0, step=step)
    with pytest.raises(ValueError, match=r"random_keep: sample_ids must be \[B\], got \[4, 1\]"):
        random_keep(ids[:, None], 9, 3, seed=0)
    with pytest.raises(ValueError, match=r"random_keep: parent must be on .* like sample_ids, got meta"):
        random_keep(ids, 9, 2, seed=0, parent=torch.zeros(4, 3, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ([[0, 1], [2, 4]], "parent must hold ids in [0, N=4), got 4 in image 1"),
        ([[-1, 1], [2, 3]], "parent must hold ids in [0, N=4), got -1 in image 0"),
        ([[0, 1], [2, 2]], "parent must not repeat an id within an image, got 2 twice in image 1"),
    ],
)
def test_says_which_id_is_wrong_on_the_cpu(parent, message):
    with pytest.raises(RuntimeError) as raised:
        random_keep(torch.arange(2), 4, 1, seed=0, parent=torch.tensor(parent))
    assert str(raised.value).startswith(f"random_keep: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2).int(), 4, 1, 0), "sample_ids must be"),
        ((torch.zeros(2, 1).long(), 4, 1, 0), "sample_ids must be"),
        ((torch.zeros(2).long(), -1, 0, 0), "num_tokens must be in"),
        ((torch.zeros(2).long(), 2**31, 0, 0), "num_tokens must be in"),
        ((torch.zeros(2).long(), 4, 5, 0), r"num_keep must be in \[0, 4\], got 5"),
        ((torch.zeros(2).long(), 4, -1, 0), r"num_keep must be in \[0, 4\], got -1"),
        ((torch.zeros(2).long(), 4, 3, 0, torch.zeros(2, 2).long()), r"num_keep must be in \[0, 2\], got 3"),
        ((torch.zeros(2).long(), 4, 1, 0, torch.zeros(3, 2).long()), "parent must have the images"),
        ((torch.zeros(2).long(), 4, 1, 0, torch.zeros(2, 2).int()), "parent must be"),
        (
            (torch.zeros(1).long(), 4, 1, 0, torch.zeros(1, 1).long().expand(1, 2**31)),
            r"parent must hold less than 2\*\*31 ids per image, got 2147483648",
        ),
    ],
)
def test_the_bare_op_reads_nothing_out_of_bounds(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.random_keep(*arguments)

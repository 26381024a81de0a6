"""random_keep against drawing noise and sorting it."""

from typing import Any

import torch
from torch import Tensor

from bench import inputs, shapes
from bench.entry import Case, Measure, entry
from bench.refcheck import WrongResult, equal_up_to_rounding
from bimkern.ops.random_keep import random_keep, random_keep_reference


def sort_noise(ids: Tensor, num_tokens: int, num_keep: int) -> Tensor:
    """No more than ours gives: the kept patches."""
    noise = torch.rand(len(ids), num_tokens, device=ids.device)
    return noise.argsort(dim=1)[:, :num_keep]


def usual(ids: Tensor, num_tokens: int, num_keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """The usual form: two argsorts and a gather, for the kept patches, the mask and the order that restores."""
    noise = torch.rand(len(ids), num_tokens, device=ids.device)
    shuffle = noise.argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    mask = torch.ones_like(noise)
    mask[:, :num_keep] = 0
    return shuffle[:, :num_keep], mask.gather(1, restore), restore


def hold_to_a_draw(provider: str, drawn: Tensor, num_tokens: int, expected: Tensor) -> None:
    """Another generator draws other patches, but as many, in range and without repeats."""
    positions = drawn.sort(dim=1).values
    distinct = (positions[:, 1:] > positions[:, :-1]).all() and 0 <= positions.min() <= positions.max() < num_tokens
    if drawn.shape != expected.shape or not distinct:
        raise WrongResult(f"{provider}: must draw {list(expected.shape)} of {num_tokens} patches without repeats")


@entry("random_keep", shapes=shapes.KEEP, dtypes=("int64",), passes=("fwd",))
def measure(case: Case) -> Measure:
    """Draw which patches stay visible; the usual form also gives a mask and the order that restores."""
    ids, B, N, K = inputs.sample_ids(case), *(case.dims[letter] for letter in "BNK")
    compiled = case.compiled(random_keep_reference)

    def check(provider: str, got: Any, expected: Tensor) -> None:
        if provider in ("noise+argsort", "usual"):
            hold_to_a_draw(provider, got[0] if isinstance(got, tuple) else got, N, expected)
        else:
            equal_up_to_rounding(provider, got, expected)

    return Measure(
        ours=lambda: random_keep(ids, N, K, seed=0),
        rivals={
            "noise+argsort": lambda: sort_noise(ids, N, K),
            "usual": lambda: usual(ids, N, K),
            "compile": lambda: compiled(ids, N, K, 0),
        },
        reference=lambda: random_keep_reference(ids, N, K, 0),
        check=check,
        bytes=8 * B + 8 * B * K,  # sample ids in, kept patches out; the work is arithmetic
    )

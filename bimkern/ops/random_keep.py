"""random_keep: which tokens of each image stay visible, from a counter-based generator.

Shapes: B images, N tokens, P tokens of the parent keep, K kept tokens.
"""

from typing import overload

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check
from bimkern.ops.philox import WORD, philox4x32

_backend.declare("random_keep")

_STREAM = 0  # second counter word; the loader's streams (data/augment.py) use others


def token_priorities(sample_ids: Tensor, num_tokens: int, seed: int) -> Tensor:
    """Return a random 32-bit word for every token of every sample, [B, N] int64: the lowest stay longest."""
    blocks = torch.arange((num_tokens + 3) // 4, device=sample_ids.device).expand(len(sample_ids), -1)  # [B, N/4]
    ids = sample_ids.unsqueeze(1).expand_as(blocks)
    stream = torch.full_like(blocks, _STREAM)
    words = philox4x32(blocks, stream, ids & WORD, (ids >> 32) & WORD, seed)
    return torch.stack(words, dim=-1).flatten(1)[:, :num_tokens]  # [B, N]


def random_keep_reference(
    sample_ids: Tensor, num_tokens: int, num_keep: int, seed: int, parent: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    priorities = token_priorities(sample_ids, num_tokens, seed)
    if parent is not None:
        priorities = priorities.gather(1, parent)  # [B, P]
    # Stable, so that equal words (one pair in 2**32) are ordered by place on every device.
    within = priorities.argsort(dim=1, stable=True)[:, :num_keep].sort(dim=1).values  # [B, K]
    return within if parent is None else (parent.gather(1, within), within)


@overload
def random_keep(sample_ids: Tensor, num_tokens: int, num_keep: int, *, seed: int, parent: None = None) -> Tensor: ...


@overload
def random_keep(
    sample_ids: Tensor, num_tokens: int, num_keep: int, *, seed: int, parent: Tensor
) -> tuple[Tensor, Tensor]: ...


def random_keep(
    sample_ids: Tensor, num_tokens: int, num_keep: int, *, seed: int, parent: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw the tokens that stay visible, a uniform subset of exactly num_keep for every sample.

    The draw is a function of (seed, sample id) alone: the same on every device, for every batch split, world size and
    after a resume. With one seed a smaller draw lies inside a larger one, which is what a growing mask needs.

    Args:
        sample_ids: [B], int64. Anything that names a sample (and its epoch) uniquely.
        num_tokens: N.
        num_keep: K, 0 <= K <= N, or <= P with a parent.
        seed: 64 bits.
        parent: [B, P], int64, a keep to draw inside of; BIMKERN_DEBUG=1 checks its ids.

    Returns:
        keep [B, K], int64, ascending. With a parent also within [B, K], the places of keep inside parent.

    Raises:
        ValueError, TypeError: a shape, dtype or count is off; the message names it.
        RuntimeError: an id in parent is out of range or out of order (BIMKERN_DEBUG=1).

    Same as: random_keep_reference.
    Source: He et al. 2022 (MAE), section 3 "masking"; Luo et al. 2023 (BIM), section 3.3 for growing masks.
    """
    check.shapes("random_keep", sample_ids=(sample_ids, "B"))
    check.dtypes("random_keep", sample_ids=(sample_ids, torch.int64))
    available, letter = num_tokens, "num_tokens"
    if parent is not None:
        dims = check.shapes("random_keep", sample_ids=(sample_ids, "B"), parent=(parent, "B P"))
        check.dtypes("random_keep", parent=(parent, torch.int64))
        check.same_device("random_keep", sample_ids=sample_ids, parent=parent)
        check.ids("random_keep", "parent", parent, num_tokens)
        available, letter = dims["P"], "P"
    if not 0 <= num_keep <= available:
        raise ValueError(f"random_keep: num_keep must be in [0, {letter}={available}], got {num_keep}")
    return _backend.call("random_keep", random_keep_reference, sample_ids, num_tokens, num_keep, seed, parent)

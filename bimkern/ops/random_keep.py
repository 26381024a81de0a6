"""random_keep: which tokens of each image stay visible, from a counter-based generator.

Shapes: B images, N tokens, P tokens of the parent keep, K kept tokens.
"""

from typing import overload

import torch
from torch import Tensor

from bimkern.ops import _backend
from bimkern.ops import _check as check
from bimkern.rng import WORD, Stream, draw, philox4x32

# A symbolic step: torch.compile would otherwise recompile a loop at every step.
_ARGUMENTS = "Tensor sample_ids, int num_tokens, int num_keep, int seed"
_backend.schemas.define(f"random_keep({_ARGUMENTS}, SymInt step=0) -> Tensor")
_backend.schemas.define(f"random_keep.parent({_ARGUMENTS}, Tensor parent, SymInt step=0) -> (Tensor, Tensor)")
_backend.declare("random_keep", kernels={"cpu": "native", "cuda": "native"})

MAX_TOKENS = 2**31 - 1


def token_priorities(sample_ids: Tensor, num_tokens: int, seed: int) -> Tensor:
    """Return a random 32-bit word for every token of every sample, [B, N] int64: the lowest stay longest."""
    blocks = torch.arange((num_tokens + 3) // 4, device=sample_ids.device)  # four words each
    words = draw(Stream.MASK, blocks, sample_ids.unsqueeze(1), seed)  # each [B, N/4]
    return torch.stack(words, dim=-1).flatten(1)[:, :num_tokens]  # [B, N]


def _step_key(seed: int, step: int) -> int:
    """Return the 64 bits that a step draws by: the seed at step 0, two words drawn from it at others."""
    low, high, _, _ = philox4x32(step & WORD, Stream.STEP.value, (step >> 32) & WORD, 0, seed)
    return low | high << 32 if step else seed


def random_keep_reference(
    sample_ids: Tensor, num_tokens: int, num_keep: int, seed: int, parent: Tensor | None = None, step: int = 0
) -> Tensor | tuple[Tensor, Tensor]:
    priorities = token_priorities(sample_ids, num_tokens, _step_key(seed, step))
    if parent is not None:
        priorities = priorities.gather(1, parent)  # [B, P]
    # Stable, so that equal words (one pair in 2**32) are ordered by place on every device.
    within = priorities.argsort(dim=1, stable=True)[:, :num_keep].sort(dim=1).values  # [B, K]
    return within if parent is None else (parent.gather(1, within), within)


@overload
def random_keep(
    sample_ids: Tensor, num_tokens: int, num_keep: int, *, seed: int, step: int = 0, parent: None = None
) -> Tensor: ...


@overload
def random_keep(
    sample_ids: Tensor, num_tokens: int, num_keep: int, *, seed: int, step: int = 0, parent: Tensor
) -> tuple[Tensor, Tensor]: ...


def random_keep(
    sample_ids: Tensor, num_tokens: int, num_keep: int, *, seed: int, step: int = 0, parent: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw the tokens that stay visible, a uniform subset of exactly num_keep for every sample.

    The draw is a function of (seed, step, sample id) alone: the same on every device, for every batch split, world size
    and after a resume. With one seed and step a smaller draw lies inside a larger one, as a growing mask needs it.

    Args:
        sample_ids: [B], int64. Anything that names a sample uniquely.
        num_tokens: N, below 2**31.
        num_keep: K, 0 <= K <= N, or <= P with a parent.
        seed: 64 bits, with or without a sign; more are cut off.
        step: of the training loop, or its epoch, 0 <= step < 2**63: each draws other masks. May stay 0 where the sample
            ids name the epoch too.
        parent: [B, P], int64, a keep to draw inside of, in any order. A CPU checks its ids, a GPU with
            BIMKERN_DEBUG=1. Otherwise the CUDA kernel draws those out of range like others, and the reference, plain
            torch, asserts on the device.

    Returns:
        keep [B, K], int64, ascending, or in the order of parent. With a parent also within [B, K], ascending, the
        places of keep inside parent.

    Raises:
        ValueError, TypeError: a shape, dtype or count is off; the message names it.
        RuntimeError: an id in parent is out of range or repeated (on a CPU, or with BIMKERN_DEBUG=1).

    Same as: random_keep_reference.
    Source: He et al. 2022 (MAE), section 3 "masking"; Luo et al. 2023 (BIM), section 3.3 for growing masks.
    """
    op = "random_keep"
    check.once(_check, (sample_ids, parent), num_tokens, num_keep)
    if not 0 <= step < 2**63:
        raise ValueError(f"{op}: step must be in [0, 2**63), got {step}")
    args = (sample_ids, num_tokens, num_keep, _signed(seed))
    if parent is None:
        return _backend.call(op, random_keep_reference, *args, step=step)
    return _backend.call(op, random_keep_reference, *args, parent, step=step, ids=("parent", parent, num_tokens))


def _check(sample_ids: Tensor, parent: Tensor | None, num_tokens: int, num_keep: int) -> None:
    """Check what random_keep takes, except for the step, another at every call."""
    op = "random_keep"
    dims = check.shapes(op, sample_ids=(sample_ids, "B"), parent=(parent, "B P"))
    check.dtypes(op, sample_ids=(sample_ids, torch.int64), parent=(parent, torch.int64))
    check.same_device(op, sample_ids=sample_ids, parent=parent)
    if not 0 <= num_tokens <= MAX_TOKENS:
        raise ValueError(f"{op}: num_tokens must be in [0, 2**31), got {num_tokens}")
    if parent is not None and dims["P"] > num_tokens:
        raise ValueError(f"{op}: parent must hold at most num_tokens={num_tokens} ids per image, got P={dims['P']}")
    letter, available = ("num_tokens", num_tokens) if parent is None else ("P", dims["P"])
    if not 0 <= num_keep <= available:
        raise ValueError(f"{op}: num_keep must be in [0, {letter}={available}], got {num_keep}")


def _signed(seed: int) -> int:
    """Return the 64 bits of a seed as the number that an op takes."""
    return seed if -(2**63) <= seed < 2**63 else (seed + 2**63) % 2**64 - 2**63


@torch.library.register_fake("bimkern::random_keep", lib=_backend.schemas)
def _(sample_ids: Tensor, num_tokens: int, num_keep: int, seed: int, step: int = 0) -> Tensor:
    return sample_ids.new_empty(sample_ids.shape[0], num_keep)


@torch.library.register_fake("bimkern::random_keep.parent", lib=_backend.schemas)
def _(
    sample_ids: Tensor, num_tokens: int, num_keep: int, seed: int, parent: Tensor, step: int = 0
) -> tuple[Tensor, Tensor]:
    shape = (sample_ids.shape[0], num_keep)
    return sample_ids.new_empty(shape), sample_ids.new_empty(shape)

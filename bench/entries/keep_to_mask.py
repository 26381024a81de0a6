"""keep_to_mask against a scatter of zeros into ones."""

import torch

from bench import inputs, shapes
from bench.entry import Case, Measure, entry
from bimkern.ops.keep_to_mask import keep_to_mask, keep_to_mask_reference


@entry("keep_to_mask", shapes=shapes.KEEP, dtypes=("float32",), passes=("fwd",))
def measure(case: Case) -> Measure:
    """Turn kept patches into a mask that is 1 where masked."""
    keep, B, N, K = inputs.keep(case), *(case.dims[letter] for letter in "BNK")
    compiled = case.compiled(keep_to_mask_reference)
    return Measure(
        ours=lambda: keep_to_mask(keep, N),
        rivals={
            "scatter": lambda: torch.ones(B, N, device=case.device).scatter_(1, keep, 0.0),
            "compile": lambda: compiled(keep, N),
        },
        reference=lambda: keep_to_mask_reference(keep, N),
        bytes=8 * B * K + 4 * B * N,
    )

"""calls: what a call costs beside its work, on shapes so small that there is hardly any."""

from collections.abc import Iterable

import torch

from bench import inputs
from bench.entries.gather_tokens import torch_gather
from bench.entries.restore_tokens import cat_gather_add
from bench.entry import BOTH, Case, Entry, Measure, register
from bimkern.ops import gather_tokens, restore_tokens

_TOY = {"B": 4, "N": 16, "K": 4, "D": 32}


def cases(device: torch.device, quick: bool) -> Iterable[Case]:
    for op in ("gather_tokens", "restore_tokens"):
        for pass_name in BOTH:
            yield Case(device=device, dims={"op": op, **_TOY}, dtype="float32", pass_name=pass_name)


def measure(case: Case) -> Measure:
    keep, N = inputs.keep(case), case.dims["N"]
    if case.dims["op"] == "gather_tokens":
        tokens = inputs.floats(case, "B", "N", "D")
        return Measure(
            ours=lambda: gather_tokens(tokens, keep),
            rivals={"torch.gather": lambda: torch_gather(tokens, keep, None)},
            leaves=[tokens],
            items=case.dims["B"],
        )
    leaves = visible, mask_token, pos = [inputs.floats(case, *dims) for dims in (("B", "K", "D"), ("D",), ("N", "D"))]
    ids_restore = inputs.ids_restore(keep, N)
    return Measure(
        ours=lambda: restore_tokens(visible, keep, mask_token, pos, num_tokens=N),
        rivals={"cat+gather+add": lambda: cat_gather_add(visible, ids_restore, mask_token, pos, 0)},
        leaves=leaves,
        items=case.dims["B"],
    )


CALLS = register(Entry(name="calls", summary="What a call costs on a toy shape.", cases=cases, measure=measure))

"""gather_tokens against torch.gather and row indexing."""

import torch
from torch import Tensor

from bench import inputs, shapes
from bench.entry import Case, Measure, entry
from bimkern.ops.gather_tokens import gather_tokens, gather_tokens_reference


def torch_gather(tokens: Tensor, keep: Tensor, pos: Tensor | None) -> Tensor:
    """The usual form: positions are added to all tokens, then an expanded index gathers."""
    tokens = tokens if pos is None else tokens + pos
    return tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def row_index(tokens: Tensor, keep: Tensor, pos: Tensor | None) -> Tensor:
    kept = tokens[torch.arange(len(keep), device=keep.device)[:, None], keep]
    return kept if pos is None else kept + pos[keep]


@entry("gather_tokens", shapes=shapes.GATHER)
def measure(case: Case) -> Measure:
    """Keep the visible tokens, with and without positions."""
    tokens, keep = inputs.floats(case, "B", "N", "D"), inputs.keep(case)
    pos = inputs.floats(case, "P", "D") if case.dims["P"] else None
    B, N, K, D, P = (case.dims[letter] for letter in "BNKDP")
    compiled = case.compiled(torch_gather)
    # Kept rows, positions and indices in, kept rows out; back: gradients of kept rows in, of all tokens (zero where
    # dropped) and positions out.
    moved = (2 * B * K * D + P * D) * case.itemsize + 8 * B * K
    back = (B * K * D + B * N * D + P * D) * case.itemsize + 8 * B * K
    return Measure(
        ours=lambda: gather_tokens(tokens, keep, pos),
        rivals={
            "torch.gather": lambda: torch_gather(tokens, keep, pos),
            "row index": lambda: row_index(tokens, keep, pos),
            "compile": lambda: compiled(tokens, keep, pos),
        },
        reference=lambda: gather_tokens_reference(tokens, keep, pos),
        leaves=[tokens] if pos is None else [tokens, pos],
        bytes=moved if case.pass_name == "fwd" else moved + back,
    )

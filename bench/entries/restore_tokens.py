"""restore_tokens against the concatenate, gather and add of MIM programs."""

import torch
from torch import Tensor

from bench import inputs, shapes
from bench.entry import Case, Measure, entry
from bimkern.ops.restore_tokens import restore_tokens, restore_tokens_reference


def cat_gather_add(visible: Tensor, ids_restore: Tensor, mask_token: Tensor, pos: Tensor, num_prefix: int) -> Tensor:
    """The usual form: mask tokens are appended, an expanded index brings all back in order, positions are added."""
    B, N = ids_restore.shape
    masked = mask_token.repeat(B, N + num_prefix - visible.shape[1], 1)
    tokens = torch.cat([visible[:, num_prefix:], masked], dim=1)
    tokens = tokens.gather(1, ids_restore.unsqueeze(-1).repeat(1, 1, visible.shape[-1]))
    tokens = torch.cat([visible[:, :num_prefix], tokens], dim=1)
    return tokens + torch.cat([pos.new_zeros(num_prefix, pos.shape[1]), pos])


def clone_put(visible: Tensor, keep: Tensor, mask_token: Tensor, pos: Tensor, num_prefix: int) -> Tensor:
    """The best form in plain torch: masked rows are the same in every image, so clone a table and put visible rows."""
    B, R = len(visible), num_prefix
    zeros = pos.new_zeros(R, pos.shape[1])
    table = torch.cat([zeros, mask_token + pos]).expand(B, -1, -1)  # [B, R+N, D]
    prefix = torch.arange(R, device=keep.device).expand(B, -1)
    positions = torch.cat([prefix, keep + R], dim=1)  # [B, R+K]
    rows = torch.arange(B, device=keep.device)[:, None]
    return table.index_put((rows, positions), visible + torch.cat([zeros, pos])[positions])


@entry("restore_tokens", shapes=shapes.RESTORE)
def measure(case: Case) -> Measure:
    """Put visible tokens back in place, mask tokens elsewhere, and add positions."""
    B, N, K, D, R = (case.dims[letter] for letter in "BNKDR")
    visible, mask_token, pos = (
        inputs.floats(case, "B", R + K, "D"),
        inputs.floats(case, "D"),
        inputs.floats(case, "N", "D"),
    )
    keep = inputs.keep(case)
    ids_restore = inputs.ids_restore(keep, N)
    compiled = case.compiled(restore_tokens_reference)
    # Visible rows, positions, mask token and indices in, all rows out; back: gradients of all rows in, of visible rows,
    # positions and mask token out.
    rows, table = B * (R + N) * D, (N + 1) * D
    one_way = (B * (R + K) * D + rows + table) * case.itemsize + 8 * B * K
    return Measure(
        ours=lambda: restore_tokens(visible, keep, mask_token, pos, num_tokens=N, num_prefix=R),
        rivals={
            "cat+gather+add": lambda: cat_gather_add(visible, ids_restore, mask_token, pos, R),
            "clone+put": lambda: clone_put(visible, keep, mask_token, pos, R),
            "compile": lambda: compiled(visible, keep, mask_token, pos, num_tokens=N, num_prefix=R),
        },
        reference=lambda: restore_tokens_reference(visible, keep, mask_token, pos, num_tokens=N, num_prefix=R),
        leaves=[visible, mask_token, pos],
        bytes=one_way if case.pass_name == "fwd" else 2 * one_way,
    )

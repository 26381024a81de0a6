"""The published block of a sparse Swin computes what dense attention among the tokens of a window computes."""

import pytest
import torch
from torch import nn

from bench.eager.swin_block import Block, group
from bimkern.ops import group_windows

# grid, visible tokens, window, shift
CASES = [
    ((14, 14), 120, 7, 0),  # grouped
    ((14, 14), 120, 7, 3),
    ((12, 21), 160, 7, 3),
    ((14, 14), 60, 7, 3),  # one group
    ((7, 7), 12, 7, 3),  # one window
    ((8, 20), 90, 6, 2),
    ((4, 21), 75, 7, 3),  # a window of 4 x 7
    ((3, 5), 1, 2, 1),
]


def visible(grid, num_kept):
    return torch.randperm(grid[0] * grid[1])[:num_kept].sort().values


@pytest.mark.parametrize(("grid", "num_kept", "window", "shift"), CASES, ids=str)
def test_groups_are_those_of_group_windows(grid, num_kept, window, shift):
    keep = visible(grid, num_kept)
    found = group(keep, grid, window, shift)
    wanted = group_windows(keep[None], grid, window, shift, published=True)
    members, windows = wanted.members[0].long(), wanted.windows[0].long()
    assert found.slots.shape == members.shape
    assert torch.equal(found.slots.flatten()[found.restore], torch.arange(num_kept))
    present = torch.zeros(found.slots.numel(), dtype=torch.bool)
    present[found.restore] = True
    for ours, theirs, shown in zip(members, found.slots, present.view_as(members), strict=True):
        assert torch.equal(ours[ours >= 0].sort().values, theirs[shown].sort().values)
        same = (windows[theirs][:, None] == windows[theirs]) & shown[:, None] & shown
        row = found.slots.tolist().index(theirs.tolist())
        assert torch.equal(found.mask[row, 0] == 0, same)


@pytest.mark.parametrize(("grid", "num_kept", "window", "shift"), CASES, ids=str)
def test_equals_dense_attention_among_visible_tokens(grid, num_kept, window, shift):
    B, C, H = 2, 16, 2
    sides = min(window, grid[0]), min(window, grid[1])
    block = Block(C, H, sides).double()
    table = block.attn.relative_position_bias_table
    nn.init.normal_(table)
    keep, x = visible(grid, num_kept), torch.randn(B, num_kept, C, dtype=torch.float64)
    groups = group_windows(keep[None], grid, window, shift)
    windows, positions = groups.windows[0], groups.positions[0].long()

    bias = table[positions[:, None] - positions + (len(table) - 1) // 2].permute(2, 0, 1)  # [H, T, T]
    mask = bias.masked_fill(windows[:, None] != windows, -torch.inf)
    q, k, v = block.attn.qkv(block.norm1(x)).view(B, num_kept, 3, H, C // H).permute(2, 0, 3, 1, 4)
    attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    wanted = x + block.attn.proj(attended.transpose(1, 2).reshape(x.shape))
    wanted = wanted + block.mlp(block.norm2(wanted))
    found = block(x, group(keep, grid, window, shift))
    torch.testing.assert_close(found, wanted)
    parameters = list(block.parameters())
    for ours, theirs in zip(
        *(torch.autograd.grad(out.square().sum(), parameters) for out in (wanted, found)), strict=True
    ):
        torch.testing.assert_close(theirs, ours)


def test_parameters_have_the_names_of_timm():
    names = {name for name, _ in Block(16, 2, (7, 7)).named_parameters()}
    assert names == {
        "norm1.weight",
        "norm1.bias",
        "attn.relative_position_bias_table",
        *(
            f"{layer}.{kind}"
            for layer in ("attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
            for kind in ("weight", "bias")
        ),
    }

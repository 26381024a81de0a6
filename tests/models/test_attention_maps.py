"""Attention maps: the weights by which a layer averages its values."""

import pytest
import torch

from bimkern.models.attention_maps import GivesAttentionMaps
from bimkern.models.cmt import LightAttention
from bimkern.models.layers import Attention
from bimkern.models.swin_layers import WindowAttention
from bimkern.ops import group_windows


def values_of(module, x, grid):
    """Return the values of all keys, [B, T, H, E]."""
    if isinstance(module, LightAttention):
        v = module.value(x)
        if module.reduction > 1:
            v = module.fewer_values(v.mT.unflatten(2, grid)).flatten(2).mT
        return v.unflatten(2, (module.num_heads, -1))
    return module.qkv(x).unflatten(2, (3, module.num_heads, -1))[:, :, 2]


def windowed(shift, table=(4, 4), grid=(6, 7)):
    everything = torch.arange(grid[0] * grid[1]).unsqueeze(0)
    module = WindowAttention(12, 3, table)
    torch.nn.init.normal_(module.relative_position_bias_table)
    return module, grid, (group_windows(everything, grid, 4, shift), (4, 4))


def light(reduction, grid, own=(4, 8)):
    module = LightAttention(12, 3, reduction, own)
    torch.nn.init.normal_(module.bias)
    return module, grid, (grid,)


CASES = {
    "global": lambda: (Attention(12, 3), (2, 5), ()),
    "windows": lambda: windowed(0),
    "shifted": lambda: windowed(2),
    "resized table": lambda: windowed(2, table=(7, 7)),
    "one window": lambda: windowed(0, grid=(4, 4)),
    "fewer keys": lambda: light(2, (4, 8)),
    "fewer keys, other grid": lambda: light(2, (6, 4)),
    "all keys": lambda: light(1, (4, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_values_averaged_by_the_maps_are_what_forward_puts_out(case):
    module, grid, rest = CASES[case]()
    assert isinstance(module, GivesAttentionMaps)
    x = torch.randn(2, grid[0] * grid[1], 12)
    with torch.no_grad():
        expected, v = module(x, *rest), values_of(module, x, grid)
        found, seen = torch.full((*x.shape[:2], 3, 4), torch.nan), []
        for maps in module.attention_maps(x, *rest):
            assert maps.weights.dtype == torch.float32
            torch.testing.assert_close(maps.weights.sum(dim=-1), torch.ones(maps.weights.shape[:-1]))
            found[:, maps.queries] = torch.einsum("bwhqk,bwkhe->bwqhe", maps.weights, v[:, maps.keys])
            seen += maps.queries.flatten().tolist()
            assert len(v[0]) * maps.key_side**2 == len(x[0])
        assert sorted(seen) == list(range(len(x[0])))
        torch.testing.assert_close(module.proj(found.flatten(2)), expected, rtol=1e-4, atol=1e-5)

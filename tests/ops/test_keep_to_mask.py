import pytest
import torch

from bimkern.ops import keep_to_mask


def test_mask_is_one_where_hidden(device):
    keep = torch.tensor([[0, 2], [1, 3]], device=device)
    expected = torch.tensor([[0.0, 1, 0, 1], [1, 0, 1, 0]], device=device)
    assert torch.equal(keep_to_mask(keep, 4), expected)
    assert torch.equal(keep_to_mask(keep[:, :0], 4), torch.ones(2, 4, device=device))


def test_says_what_is_wrong():
    with pytest.raises(TypeError, match="keep_to_mask: keep must be int64, got int32"):
        keep_to_mask(torch.zeros(2, 2).int(), 12)
    with pytest.raises(ValueError, match=r"keep_to_mask: keep must be \[B, K\], got \[2\]"):
        keep_to_mask(torch.zeros(2).long(), 12)
    with pytest.raises(ValueError, match="keep_to_mask: keep must hold at most N=1 tokens, got K=2"):
        keep_to_mask(torch.zeros(2, 2).long(), 1)

"""restore_tokens and keep_to_mask."""

import pytest
import torch
from torch.autograd import gradcheck

from bimkern.ops import gather_tokens, keep_to_mask, random_keep, restore_tokens

DEFAULT = {"B": 3, "N": 12, "K": 5, "R": 1, "D": 8}


def sample(device, dtype=torch.float64, *, B, N, K, R, D):
    keep = random_keep(torch.arange(B, device=device), N, K, seed=1)

    def draw(*shape):
        return torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)

    return draw(B, R + K, D), keep, draw(D), draw(N, D)


CASES = [DEFAULT, *(DEFAULT | odd for odd in ({"K": 0}, {"K": 12}, {"B": 0}, {"R": 0}, {"R": 3}, {"D": 1}))]


@pytest.mark.parametrize("dims", CASES, ids=str)
def test_puts_every_token_in_its_place(device, dims):
    visible, keep, mask_token, pos = sample(device, **dims)
    N, R = dims["N"], dims["R"]
    out = restore_tokens(visible, keep, mask_token, pos, num_tokens=N, num_prefix=R)
    assert torch.equal(out[:, :R], visible[:, :R])
    for b in range(dims["B"]):
        places = {int(n): k for k, n in enumerate(keep[b])}
        for n in range(N):
            token = visible[b, R + places[n]] if n in places else mask_token
            torch.testing.assert_close(out[b, R + n], token + pos[n], rtol=0, atol=0)


def test_undoes_gather(device):
    tokens = torch.randn(4, 1 + 20, 6, device=device)
    keep = random_keep(torch.arange(4, device=device), 20, 7, seed=0)
    visible = gather_tokens(tokens, keep, num_prefix=1)
    out = restore_tokens(visible, keep, torch.zeros(6, device=device), num_tokens=20, num_prefix=1)
    hidden = keep_to_mask(keep, 20).bool()
    assert torch.equal(out[:, 1:][~hidden], tokens[:, 1:][~hidden])
    assert not out[:, 1:][hidden].any()


@pytest.mark.parametrize("with_pos", [True, False])
def test_gradients(device, with_pos):
    visible, keep, mask_token, pos = sample(device, **DEFAULT)

    def restore(visible, mask_token, pos):
        return restore_tokens(visible, keep, mask_token, pos if with_pos else None, num_tokens=12, num_prefix=1)

    assert gradcheck(restore, (visible, mask_token, pos))


def test_mask_is_one_where_hidden(device):
    keep = torch.tensor([[0, 2], [1, 3]], device=device)
    expected = torch.tensor([[0.0, 1, 0, 1], [1, 0, 1, 0]], device=device)
    assert torch.equal(keep_to_mask(keep, 4), expected)
    assert torch.equal(keep_to_mask(keep[:, :0], 4), torch.ones(2, 4, device=device))


def test_says_what_is_wrong(device):
    visible, keep, mask_token, pos = sample(device, **DEFAULT)

    def restore(visible=visible, keep=keep, mask_token=mask_token, pos=pos, num_tokens=12):
        return restore_tokens(visible, keep, mask_token, pos, num_tokens=num_tokens, num_prefix=1)

    with pytest.raises(ValueError, match=r"restore_tokens: visible must be \[B=3, R\+K=6, D\], got \[3, 5, 8\]"):
        restore(visible=visible[:, 1:])
    with pytest.raises(ValueError, match=r"restore_tokens: mask_token must be \[D=8\], got \[7\]"):
        restore(mask_token=mask_token[1:])
    with pytest.raises(ValueError, match=r"restore_tokens: pos must be \[N=12, D=8\], got \[11, 8\]"):
        restore(pos=pos[1:])
    with pytest.raises(ValueError, match="restore_tokens: keep must hold at most N=4 tokens, got K=5"):
        restore(pos=None, num_tokens=4)
    with pytest.raises(TypeError, match="restore_tokens: mask_token must be float64, got float32"):
        restore(mask_token=mask_token.float())
    with pytest.raises(TypeError, match="keep_to_mask: keep must be int64, got int32"):
        keep_to_mask(keep.int(), 12)

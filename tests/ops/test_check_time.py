"""How long an op takes in Python before its kernel, in empty calls, of which about 200 take 5 us on any machine."""

import timeit

import pytest
import torch

from bimkern import ops
from bimkern.ops import _backend

B, N, K, D = 2, 16, 4, 8
IDS, KEEP = torch.arange(B), torch.tensor([[3, 0, 7, 15]]).expand(B, -1)
TOKENS, VISIBLE, POS = torch.zeros(B, N, D), torch.zeros(B, K, D), torch.zeros(N, D)
IMAGES, WEIGHT, BIAS = torch.zeros(B, 3, 16, 16), torch.zeros(D, 3, 4, 4), torch.zeros(D)
LAYERS = ops.MatchLayers(WEIGHT.new_zeros(D, D, 1, 1), BIAS)
GROUPS, TABLE = ops.group_windows(torch.arange(N)[None], (4, 4), 1), torch.zeros(1, 1)
MASK, PIXELS = torch.zeros(B, N), torch.zeros(B, N, 48)
# The more tensors an op takes, the longer: one and a half times what was measured.
CALLS = {
    "embed_visible": (280, lambda: ops.embed_visible(IMAGES, WEIGHT, BIAS, KEEP, POS)),
    "gather_tokens": (165, lambda: ops.gather_tokens(TOKENS, KEEP, POS)),
    "group_attention": (270, lambda: ops.group_attention(TOKENS[..., :6], TABLE, GROUPS, 1)),
    "group_windows": (150, lambda: ops.group_windows(KEEP, (4, 4), 2, 1)),
    "hog": (190, lambda: ops.hog(IMAGES, 4)),
    "keep_to_mask": (85, lambda: ops.keep_to_mask(KEEP, N)),
    "masked_loss": (300, lambda: ops.masked_loss(TOKENS, TOKENS, MASK, denominator=2)),
    "masked_pixel_loss": (385, lambda: ops.masked_pixel_loss(PIXELS, IMAGES, MASK, patch=4, denominator=2)),
    "match_loss": (370, lambda: ops.match_loss(TOKENS, LAYERS, TOKENS, MASK, 1, denominator=2)),
    "match_predict": (160, lambda: ops.match_predict(TOKENS, LAYERS, 1)),
    "pixel_targets": (160, lambda: ops.pixel_targets(IMAGES, 4)),
    "random_keep": (115, lambda: ops.random_keep(IDS, N, K, seed=0, step=3)),
    "random_keep with a parent": (150, lambda: ops.random_keep(IDS, 99, 2, seed=0, parent=KEEP)),
    "restore_tokens": (210, lambda: ops.restore_tokens(VISIBLE, KEEP, BIAS, POS, num_tokens=N)),
    "scale_mask": (110, lambda: ops.scale_mask(MASK, 1, grid=(2, 8))),
}


def empty():
    pass


@pytest.mark.parametrize("name", CALLS)
def test_checks_take_little_time(monkeypatch, name):
    monkeypatch.setattr(_backend, "call", lambda *_, **__: [None, None, None])
    limit, call = CALLS[name]
    # Other work on the machine can only add to a time.
    op, nothing = (min(timeit.repeat(x, number=200, repeat=25)) for x in (call, empty))
    assert op <= limit * nothing

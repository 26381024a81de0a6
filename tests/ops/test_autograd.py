"""How an op's kernel is run: keywords, and the ways of differentiating that it has."""

import pytest
import torch
from torch.autograd import forward_ad

from bimkern.ops import _backend, gather_tokens

B, N, D = 2, 4, 8
KEEP = torch.tensor([[0, 2], [3, 1]])


def test_keywords_reach_an_op_with_and_without_a_gradient():
    for requires_grad in (False, True):
        tokens = torch.randn(B, 1 + N, D, requires_grad=requires_grad)
        out = _backend.run("gather_tokens", tokens, keep=KEEP, pos=None, num_prefix=1)
        assert torch.equal(out, gather_tokens(tokens, KEEP, num_prefix=1))
        assert out.requires_grad == requires_grad


def dual(tokens):
    with forward_ad.dual_level():
        out = gather_tokens(forward_ad.make_dual(tokens, torch.ones_like(tokens)), KEEP)
        return forward_ad.unpack_dual(out).tangent


def jvp(tokens):
    return torch.func.jvp(lambda x: gather_tokens(x, KEEP), (tokens,), (torch.ones_like(tokens),))[1]


@pytest.mark.parametrize("differentiate", [dual, jvp])
def test_forward_mode_has_a_reference_and_no_kernel(monkeypatch, differentiate):
    tokens = torch.randn(B, N, D)
    for leaf in (tokens, tokens.clone().requires_grad_()):
        with pytest.raises(NotImplementedError) as raised:
            differentiate(leaf)
        assert str(raised.value) == "gather_tokens: forward-mode AD has no kernel; BIMKERN_BACKEND=reference has it"
    monkeypatch.setenv("BIMKERN_BACKEND", "reference")
    assert torch.equal(differentiate(tokens), torch.ones(B, 2, D))


def test_an_op_without_tangents_runs_beside_others_in_forward_mode():
    tokens = torch.randn(B, N, D)
    with forward_ad.dual_level():
        assert torch.equal(gather_tokens(tokens, KEEP), gather_tokens(tokens, KEEP))


def test_functional_gradients_are_the_references(monkeypatch):
    tokens = torch.randn(B, N, D)
    gradient = torch.func.grad(lambda x: gather_tokens(x, KEEP).sum())
    with pytest.raises(RuntimeError, match="setup_context"):
        gradient(tokens)
    monkeypatch.setenv("BIMKERN_BACKEND", "reference")
    assert gradient(tokens).sum() == KEEP.numel() * D

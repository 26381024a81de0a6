"""What patch() replaces of a fork or a subclass of a program: what does the same, and nothing else."""

import random

import numpy as np
import pytest
import torch
from dropin_hosts import hf_vitmae
from torch import nn
from torch.utils.checkpoint import checkpoint

from bench.hosts.mae import MaskedAutoencoderViT
from bimkern.dropin import patch

recompute = checkpoint
ALL = {"forward_encoder", "random_masking", "forward_decoder", "forward_loss"}
IMAGES = torch.rand(3, 3, 32, 32)


def numpy_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002  the legacy generator is what hosts use


class OtherLoss(MaskedAutoencoderViT):
    def forward_loss(self, imgs, pred, mask):
        return (pred - self.patchify(imgs)).abs().mean()


class OtherPatches(MaskedAutoencoderViT):
    def patchify(self, imgs):
        p = self.patch_embed.patch_size[0]
        return nn.functional.unfold(imgs, p, stride=p).mT


class NoiseForAll(MaskedAutoencoderViT):
    def random_masking(self, x, mask_ratio):
        return super().random_masking(x + 0 * torch.rand(1, device=x.device), mask_ratio)


class BatchWideMask(MaskedAutoencoderViT):
    def random_masking(self, x, mask_ratio):
        kept, mask, ids_restore = super().random_masking(x[:1], mask_ratio)
        keep = ids_restore.argsort(dim=1)[0, : kept.shape[1]]
        return x[:, keep], mask.expand(len(x), -1), ids_restore.expand(len(x), -1)


class Timestamps(MaskedAutoencoderViT):
    def forward_encoder(self, x, mask_ratio, timestamps=None):
        return super().forward_encoder(x, mask_ratio)


class StopsGradient(MaskedAutoencoderViT):
    def forward_decoder(self, x, ids_restore):
        return super().forward_decoder(x.detach(), ids_restore)


class Recomputes(MaskedAutoencoderViT):
    def forward_decoder(self, x, ids_restore):
        return checkpoint(super().forward_decoder, x, ids_restore, use_reentrant=False)


class RecomputesUnderAnotherName(MaskedAutoencoderViT):
    def forward_decoder(self, x, ids_restore):
        return recompute(super().forward_decoder, x, ids_restore, use_reentrant=False)


class RecomputesInside(MaskedAutoencoderViT):
    def forward_decoder(self, x, ids_restore):
        def run(x):
            return checkpoint(MaskedAutoencoderViT.forward_decoder, self, x, ids_restore, use_reentrant=False)

        return run(x)


class FullPrecision(MaskedAutoencoderViT):
    def forward_decoder(self, x, ids_restore):
        with torch.autocast(x.device.type, enabled=False):
            return super().forward_decoder(x.float(), ids_restore)

    @torch.autocast("cpu", enabled=False)
    def forward_encoder(self, x, mask_ratio):
        return super().forward_encoder(x, mask_ratio)

    def forward_loss(self, imgs, pred, mask):
        with torch.autocast(imgs.device.type, enabled=False):
            return super().forward_loss(imgs, pred, mask)


class OutOfTraining(MaskedAutoencoderViT):
    def forward_decoder(self, x, ids_restore):
        return super().forward_decoder(x if self.training else 2 * x, ids_restore)


class Broken(MaskedAutoencoderViT):
    def forward_loss(self, imgs, pred, mask):
        raise RuntimeError("no loss\nat all")


class TwoLayersLess(MaskedAutoencoderViT):
    def forward_encoder(self, x, mask_ratio):
        layers, self.blocks = self.blocks, self.blocks[:1]
        try:
            return super().forward_encoder(x, mask_ratio)
        finally:
            self.blocks = layers


FORKS = [
    (OtherLoss, {"forward_loss": "computes other results than its replacement"}),
    (OtherPatches, {"forward_loss": "computes other results than its replacement"}),
    (NoiseForAll, dict.fromkeys(["forward_encoder", "random_masking"], "draws other random numbers")),
    (
        BatchWideMask,
        dict.fromkeys(["forward_encoder", "random_masking"], "draws other random numbers"),
    ),
    (Timestamps, {"forward_encoder": "takes (x, mask_ratio, timestamps) instead of (x, mask_ratio)"}),
    (StopsGradient, {"forward_decoder": "computes other gradients than its replacement"}),
    *(
        (fork, {"forward_decoder": "recomputes activations (checkpoint), which the replacement would not"})
        for fork in (Recomputes, RecomputesUnderAnotherName, RecomputesInside)
    ),
    (
        FullPrecision,
        dict.fromkeys(
            ["forward_encoder", "forward_decoder"], "computes other results than its replacement under autocast"
        ),
    ),
    (OutOfTraining, {"forward_decoder": "computes other results than its replacement"}),
    (Broken, {"forward_loss": "could not be tried: RuntimeError: no loss"}),
    (TwoLayersLess, {"forward_encoder": "computes other results than its replacement"}),
]


@pytest.mark.parametrize(("fork", "left"), FORKS, ids=[fork.__name__ for fork, _ in FORKS])
def test_what_a_fork_changed_stays_and_the_rest_is_replaced(fork, left):
    model = fork()
    patched = patch(model)
    assert dict(patched.left) == left
    assert set(patched.replaced) == ALL - set(left)
    for method in left:
        assert getattr(type(model), method) is getattr(fork, method)
    assert "left     " + next(iter(left)) in str(patched)


class OtherDefault(MaskedAutoencoderViT):
    def forward_encoder(self, x, mask_ratio=0.5):
        return super().forward_encoder(x, mask_ratio)


def test_defaults_stay_the_hosts():
    model = OtherDefault()
    torch.manual_seed(1)
    expected = model.forward_encoder(IMAGES)
    assert not patch(model).left
    torch.manual_seed(1)
    for ours, theirs in zip(model.forward_encoder(IMAGES), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    other = MaskedAutoencoderViT()
    patch(other)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'mask_ratio'"):
        other.forward_encoder(IMAGES)


class OwnArguments:
    def forward(self, pixel_values, **options):
        return super().forward(pixel_values, **options)


class UntypedForward:
    def forward(self, pixel_values=None, noise=None, interpolate_pos_encoding=False, attention_mask=None, **kwargs):
        return super().forward(pixel_values, noise, interpolate_pos_encoding, attention_mask, **kwargs)


@pytest.mark.parametrize(
    ("mixin", "left"),
    [
        (
            OwnArguments,
            "takes (pixel_values, options) instead of "
            "(pixel_values, noise, interpolate_pos_encoding, attention_mask, kwargs)",
        ),
        (UntypedForward, None),
    ],
)
def test_a_subclass_whose_forward_does_not_say_what_it_returns(mixin, left):
    model = hf_vitmae()
    torch.manual_seed(1)
    expected = model(IMAGES).loss
    model.__class__ = type(mixin.__name__, (mixin, type(model)), {})
    patched = patch(model)
    assert patched.left.get("forward") == left
    assert {"vit.embeddings.forward", "decoder.forward"} <= patched.replaced.keys()
    torch.manual_seed(1)
    torch.testing.assert_close(model(IMAGES).loss, expected, rtol=1e-6, atol=0)


def test_random_numbers_of_the_caller_stay():
    model = OtherLoss()  # of which one part must be tried and stay
    model.forward_loss = None
    states = random.getstate(), numpy_state(), torch.get_rng_state()
    patch(model)
    assert states[0] == random.getstate()
    assert states[1] == numpy_state()
    assert torch.equal(states[2], torch.get_rng_state())

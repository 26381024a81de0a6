"""Kernels and plain torch train alike: equal masks, losses equal but for rounding."""

import torch

from bimkern import ops
from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import MIM
from bimkern.models.layers import set_compute_dtype
from bimkern.recipes import RECIPES
from bimkern.train.config.optimizer import AdamWConfig
from bimkern.train.optim.group import GroupOptimizer

STEPS, BATCH = 4, 5


def train(device):
    """Return the views and the losses [S] of every step."""
    torch.manual_seed(0)
    model = MIM(RECIPES["bim_vit_test_growing"].config.method).to(device, torch.float64)
    set_compute_dtype(model, torch.float64)
    updates = [
        GroupOptimizer(name, group, AdamWConfig(), device=device, fp16=False)
        for name, group in model.method.flow.partition(model).items()
    ]
    generator = torch.Generator().manual_seed(5)
    steps = []
    for step in range(STEPS):
        images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator).to(device)
        views = model.views(images, torch.arange(BATCH, device=device) + step * BATCH, seed=7)
        for update in updates:
            update.set_rates(lambda group: 1e-3)
        steps.append((views, model.method.flow.step(model, [MicroBatch(images, views)], updates)))
    return steps


def test_a_growing_mask_trains_alike_on_every_backend(device, monkeypatch):
    masks = ("random_keep", "keep_to_mask", "gather_tokens", "restore_tokens")
    assert {ops.backends()[op][device.type].backend for op in masks} == {"native"}
    native = train(device)
    monkeypatch.setenv("BIMKERN_BACKEND", "reference")
    reference = train(device)
    for (ours, losses), (plain, plain_losses) in zip(native, reference, strict=True):
        for view, plain_view in zip(ours, plain, strict=True):
            assert torch.equal(view.keep, plain_view.keep)
            assert torch.equal(view.masked, plain_view.masked)
            assert torch.equal(view.decoded, plain_view.decoded)
            assert (view.within is None) == (plain_view.within is None)
            assert view.within is None or torch.equal(view.within, plain_view.within)
        # float64, after updates that divide by roots of tiny second moments
        torch.testing.assert_close(losses, plain_losses, rtol=1e-9, atol=0)
    assert (native[-1][1] != native[0][1]).all()  # it did train

"""A whole training step of ViT-B, MAE against BIM, whole and sliced; 16 images at 224 px, float32.

BIM decodes four times as often: its full decoders multiply 2.67 times as much as all of MAE.
"""

import pytest
import torch

from bimkern.mim.flow import MicroBatch
from bimkern.mim.model import MIM
from bimkern.recipes import RECIPES
from bimkern.train.optim import GroupOptimizer
from bimkern.train.optimizers import AdamWConfig

BATCH = 16


@pytest.mark.parametrize("slices", [1, 8])
@pytest.mark.parametrize("recipe", ["mae_vit_base", "bim_vit_base"])
def test_training_step(benchmark, recipe, slices):
    model = MIM(RECIPES[recipe].config.method)
    flow = model.method.flow
    updates = [
        GroupOptimizer(name, group, AdamWConfig(), device=torch.device("cpu"), fp16=False)
        for name, group in flow.partition(model).items()
    ]
    images = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8)

    def step():
        batch = MicroBatch(images, model.views(torch.arange(BATCH), seed=0))
        return flow.step(model, [batch], updates, slices=slices)

    benchmark.group = f"training step ViT-B float32 B={BATCH}"
    losses = benchmark.pedantic(step, rounds=3, warmup_rounds=1)
    assert losses.isfinite().all()
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["images/s"] = BATCH / benchmark.stats.stats.median

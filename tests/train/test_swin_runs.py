"""A Swin, sparse or dense, is planned, compiled, sliced and trained in low precision as ViT is; its images grow."""

import json
from dataclasses import replace

import pytest
import torch
from growing import records, train, write_photos

from bench.flops import step_flops
from bimkern import plan
from bimkern.mim.flow import MicroBatch, StepOptions
from bimkern.mim.masking.units import RandomUnits
from bimkern.mim.model import MIM
from bimkern.models.layers import set_compute_dtype
from bimkern.recipes import RECIPES, Recipe
from bimkern.train.optim.group import GroupOptimizer

pytestmark = pytest.mark.usefixtures("without_pictures")

NAMES = ["greenmim_swin_tiny_test", "bim_swin_tiny_test", "simmim_swin_tiny_test"]
every_recipe = pytest.mark.parametrize("name", NAMES)


class KeepGradients:
    """An update that does nothing."""

    def scale(self, loss):
        return loss

    def apply(self):
        pass


def sample(model, size=64, count=4, seed=1):
    coarse = torch.randint(0, 256, (count, 3, size // 8, size // 8), dtype=torch.uint8)
    images = coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return MicroBatch(images, model.views(images, torch.arange(count), seed))


def step(model, batches, **options):
    updates = [KeepGradients() for _ in model.method.flow.partition(model)]
    return model.method.flow.step(model, batches, updates, StepOptions(**options))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@every_recipe
def test_its_memory_is_planned_as_it_is_measured(photos, tmp_path, capsys, name):
    train(name, photos, tmp_path / "run", "--batch-size", "6", "--steps", "8")
    plan.main([name, "--batch-size", "6", "--json"])
    estimate = json.loads(capsys.readouterr().out.splitlines()[-1])
    last = records(tmp_path / "run")[-1]
    assert estimate["activations"] == last["live_activation_bytes"]
    assert last["planned_bytes"] == last["planned_peak_bytes"]
    assert (last["diverged_steps"], last["unplanned_peak_bytes"]) == (0, 0)


def test_masks_of_each_image_are_planned_too(photos, tmp_path, monkeypatch):
    """Their groups differ from step to step, so they lie outside of what the arena plans."""
    config = RECIPES["greenmim_swin_tiny_test"].config
    method = replace(config.method, masker=RandomUnits(ratio=0.75, mask_unit=4))
    config = replace(config, recipe="per_image", method=method)
    monkeypatch.setitem(RECIPES, "per_image", Recipe(summary="for a test", config=config))
    train("per_image", photos, tmp_path / "run", "--batch-size", "6", "--steps", "8")
    last = records(tmp_path / "run")[-1]
    assert (last["diverged_steps"], last["unplanned_peak_bytes"]) == (0, 0)


@every_recipe
def test_slices_and_micro_batches_change_nothing(name):
    """Each micro-batch has a mask of its own, which is the same here for its images have one."""
    torch.manual_seed(0)
    method = RECIPES[name].config.method
    if method.masker.mask_embedding.drops:
        method = replace(method, masker=RandomUnits(ratio=0.75, mask_unit=4))
    model = MIM(method).double()
    set_compute_dtype(model, torch.float64)
    batch = sample(model)
    losses = step(model, [batch])
    whole = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None for grad in whole.values())
    model.zero_grad()
    parts = [MicroBatch(batch.images[r], [v.rows(r) for v in batch.views]) for r in (slice(0, 3), slice(3, 4))]
    torch.testing.assert_close(step(model, parts, slices=2), losses)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, whole[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["greenmim_swin_tiny_test", "bim_swin_tiny_test"])
def test_it_learns_a_batch_by_heart(name):
    """Its decoders know positions; without them, as in SimMIM, masked tokens of noise are too much alike."""
    torch.manual_seed(0)
    config = RECIPES[name].config
    model = MIM(config.method)
    batch = sample(model)
    groups = config.method.flow.partition(model).items()
    updates = [GroupOptimizer(*group, config.optim, device=torch.device("cpu"), fp16=False) for group in groups]
    for update in updates:
        update.set_rates(lambda group: 1e-2)
    losses = [config.method.flow.step(model, [batch], updates, StepOptions(slices=2)) for _ in range(60)]
    assert (losses[-1] < 0.8 * losses[0]).all(), (losses[0], losses[-1])


@every_recipe
def test_products_in_half_precision_change_little(name):
    torch.manual_seed(0)
    model = MIM(RECIPES[name].config.method)
    batch = sample(model)
    plain = step(model, [batch])
    set_compute_dtype(model, torch.bfloat16)
    half = step(model, [batch])
    assert not torch.equal(half, plain)
    torch.testing.assert_close(half, plain, rtol=0.02, atol=0)


def test_compiled_layers_compute_the_same():
    """Two layers and a merging; masks of each image, so that the number of groups changes from batch to batch."""
    method = RECIPES["greenmim_swin_tiny_test"].config.method
    model = MIM(replace(method, encoder=method.encoder.cut(2), taps=(1,), masker=RandomUnits(ratio=0.75, mask_unit=4)))
    batches = [sample(model, seed=seed) for seed in range(4)]
    plain = [step(model, [batch]) for batch in batches]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for layer in model.encoder.layers:
        layer.compile(backend="aot_eager")
    graphs = []
    for batch, expected in zip(batches, plain, strict=True):
        torch.testing.assert_close(step(model, [batch]), expected)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] <= graphs[1] <= graphs[2] == graphs[3]


def test_growing_images_keep_one_plan_a_size():
    model = MIM(RECIPES["fastmim_p_swin_tiny_test"].config.method)
    for size in (32, 48, 64) * 7:
        assert step(model, [sample(model, size, count=1)]).isfinite().all()
    assert len(model.encoder._whole) == 3


@every_recipe
def test_operations_are_counted(name):
    method = RECIPES[name].config.method
    encoder = method.encoder
    visible = 64 if method.masker.mask_embedding.drops else 256
    layers = sum(encoder.layer_flops(layer, visible) for layer in range(encoder.depth))
    # Width 16 on 256 tokens in windows of 16, with a merging to 32: the second layer of the dense one.
    assert encoder.layer_flops(1, 256) == 256 * (2 * 12 * 16**2 + 4 * 16 * 16 + 4 * 16**2)
    assert step_flops(method) > 3 * layers

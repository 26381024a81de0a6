"""The numbers of the papers beside MAE and BIM, and what every method of the family promises."""

from dataclasses import replace

import pytest
import skimage.data
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from bimkern.mim.flow import Local, MicroBatch
from bimkern.mim.model import MIM
from bimkern.mim.schedule import FreezeOut, resolve
from bimkern.mim.targets import HogTarget, PixelTarget
from bimkern.recipes import RECIPES, SMALL_RECIPES
from bimkern.recipes.localmim import HOG_BIASES

RULES = {  # blr per 256 images, betas, batch, warm-up epochs, epochs, lowest rate at the end
    "localmim_vit_base": (2e-4, (0.9, 0.95), 2048, 10, 100, 1e-6),
    "localmim_vit_base_1600": (2e-4, (0.9, 0.95), 2048, 40, 1600, 1e-6),
    "localmim_vit_large": (1.5e-4, (0.9, 0.95), 4096, 40, 800, 1e-6),
    "localmim_vit_large_biased": (1.5e-4, (0.9, 0.95), 4096, 40, 800, 1e-6),
    "mae_vit_base_1600": (1.5e-4, (0.9, 0.95), 4096, 40, 1600, 0),
    "mae_vit_large_1600": (1.5e-4, (0.9, 0.95), 4096, 40, 1600, 0),
    "fastmim_vit_base": (1.5e-4, (0.9, 0.95), 2048, 10, 800, 0),
    "simmim_vit_base": (0.5e-4, (0.9, 0.999), 2048, 10, 800, 4e-5),
    "maskfeat_vit_base": (2e-4, (0.9, 0.999), 2048, 30, 300, 1e-6),
    "localmim_swin_base": (1e-4, (0.9, 0.95), 2048, 10, 100, 0),
    "localmim_swin_base_400": (1e-4, (0.9, 0.95), 2048, 40, 400, 0),
    "localmim_swin_large": (1e-4, (0.9, 0.95), 4096, 40, 800, 0),
    "greenmim_swin_base": (1.5e-4, (0.9, 0.95), 2048, 40, 800, 0),
    "greenmim_swin_large": (1e-4, (0.9, 0.95), 2048, 40, 800, 0),
    "fastmim_swin_base": (1.5e-4, (0.9, 0.95), 2048, 10, 400, 0),
    "fastmim_swin_large": (1.5e-4, (0.9, 0.95), 2048, 10, 400, 0),
    "fastmim_p_swin_large": (1.5e-4, (0.9, 0.95), 2048, 10, 400, 0),
    "simmim_swin_base": (0.5e-4, (0.9, 0.999), 2048, 10, 800, 4e-5),
    "vitfreeze_vit_base": (2e-4, (0.9, 0.95), 2048, 10, 100, 0),
    "vitfreeze_vit_base_published": (2e-4, (0.9, 0.95), 2048, 10, 100, 0),
    "vitfreeze_vit_base_unscaled": (2e-4, (0.9, 0.95), 2048, 10, 100, 0),
}


@pytest.mark.parametrize(("name", "rule"), RULES.items())
def test_optimization_is_that_of_the_papers(name, rule):
    config = RECIPES[name].config
    base_lr, betas, batch, warmup, epochs, lowest = rule
    run, depth = config.run, config.method.encoder.depth
    assert (run.base_lr, run.batch_size, run.epochs) == (base_lr, batch, epochs)
    assert (config.optim.betas, config.optim.weight_decay) == (betas, 0.05)
    assert config.schedule.warmup_epochs == warmup
    schedule = resolve(config.schedule, epochs, run.peak_lr)
    assert run.peak_lr * schedule.factor(1.0, depth, depth) == pytest.approx(lowest, abs=1e-12)


def test_simmim_divides_its_rate_by_ten_at_epoch_700():
    config = RECIPES["simmim_vit_base"].config
    peak = config.run.peak_lr
    schedule = resolve(config.schedule, 800, peak)
    rates = [peak * schedule.factor(epoch / 800) for epoch in (5, 10, 699.99, 700, 800)]
    assert rates == pytest.approx([2e-4, 4e-4, 4e-4, 4e-5, 4e-5])  # 1e-4 for 512 images, 2048 of them


def test_simmim_alone_resizes_bilinearly():
    found = {name: recipe.config.augment.interpolation for name, recipe in RECIPES.items()}
    assert {name for name, filter in found.items() if filter == "bilinear"} == {n for n in RECIPES if "simmim" in n}
    assert set(found.values()) == {"bilinear", "bicubic"}


@pytest.mark.parametrize(
    ("name", "clip"), [("simmim_vit_base", 5.0), ("simmim_swin_large", 5.0), ("maskfeat_vit_base", 0.02)]
)
def test_clipping(name, clip):
    assert RECIPES[name].config.optim.clip == clip


@pytest.mark.parametrize(
    ("size", "taps"), [("small", (1, 3, 9, 11)), ("base", (1, 3, 9, 11)), ("large", (1, 3, 21, 23))]
)
def test_localmim_reads_four_taps_at_four_scales(size, taps):
    method = RECIPES[f"localmim_vit_{size}"].config.method
    assert method.taps == taps
    assert [method.target(stage).side(16, method.head(stage).scale) for stage in range(4)] == [4, 8, 16, 32]
    heads = [method.head(stage) for stage in range(4)]
    assert {(head.width, head.depth, head.num_heads) for head in heads} == {(256, 1, 8)}


def test_localmim_gives_the_published_shapes_and_a_head_for_every_tap():
    method = RECIPES["localmim_vit_base"].config.method
    with FakeTensorMode():
        model = MIM(method)
        images = torch.empty(2, 3, 224, 224, dtype=torch.uint8)
        (view, *_) = model.views(images, torch.empty(2, dtype=torch.int64), 0)
        tokens = torch.empty(2, 50, 768)
        shapes = [tuple(model.predict(stage, tokens, view).shape) for stage in range(4)]
    assert shapes == [(2, 3136, 27), (2, 784, 27), (2, 196, 27), (2, 49, 27)]


def test_zero_predictors_score_one_ninth_a_scale():
    """Every histogram that is not flat has length 1: 4/9 for LocalMIM, 1/9 for FastMIM and MaskFeat."""
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    for name, expected in (("localmim_vit_test", 4 / 9), ("fastmim_vit_test", 1 / 9), ("maskfeat_vit_test", 1 / 9)):
        config = RECIPES[name].config
        model = MIM(config.method)
        for head in model.heads:
            last = head.pred if isinstance(head.pred, torch.nn.Linear) else head.pred.pred
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
        assert losses(model, images).sum() == pytest.approx(expected, rel=1e-4)


def test_localmim_begins_where_its_published_trace_does():
    """Step 0 of ViT-B on photographs, all four scales together: about 1.10."""
    torch.manual_seed(0)
    photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)
    images = torch.stack([photo[:, y : y + 224, x : x + 224] for y, x in ((0, 0), (0, 288), (288, 0), (288, 288))])
    model = MIM(RECIPES["localmim_vit_base"].config.method)
    assert losses(model, images).sum() == pytest.approx(1.10, abs=0.1)


@pytest.mark.parametrize(("image_size", "patches"), [(240, 15), (112, 7)])
def test_a_grid_that_a_scale_does_not_divide_is_refused(image_size, patches):
    method = RECIPES["localmim_vit_base"].config.method
    words = f"image_size={image_size} with patch=16 makes {patches} x {patches} patches, which head 3 cannot predict at"
    with pytest.raises(ValueError, match=rf"Method: {words} scale 0.5"):
        replace(method, encoder=replace(method.encoder, image_size=image_size))


def losses(model, images):
    class Update:
        def scale(self, loss):
            return loss

        def apply(self):
            pass

    batch = MicroBatch(images, model.views(images, torch.arange(len(images)), 0))
    return model.method.flow.step(model, [batch], [Update() for _ in model.method.flow.partition(model)])


def test_the_bias_of_gradients_is_a_number_of_the_config():
    for name, bins in (("localmim_vit_test_biased", 9), ("localmim_vit_large_biased", 18)):
        targets = RECIPES[name].config.method.targets
        assert targets == tuple(HogTarget(bins=bins, bias=bias) for bias in HOG_BIASES)
    assert all(abs(value) < 1 / 3 for pair in HOG_BIASES for value in pair)
    assert all(target.bias is None for target in RECIPES["localmim_vit_large"].config.method.targets)


def test_fastmim_at_128_pixels():
    method = RECIPES["fastmim_vit_base"].config.method
    assert method.encoder.image_size.height == 128
    assert method.encoder.num_heads == 12  # its published program pre-trains with 6
    assert method.target(0).length(3, 16) == 108
    assert not method.head(0).positions
    assert RECIPES["fastmim_vit_base_depth10"].config.method.taps == (9,)


def test_the_decoder_of_fastmim_knows_no_place():
    """Permuted tokens give permuted predictions."""
    model = MIM(RECIPES["fastmim_vit_test"].config.method).double()
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float64
    tokens, order = torch.randn(2, 17, 32, dtype=torch.float64), torch.randperm(16)
    moved = torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], dim=1)
    torch.testing.assert_close(model.heads[0](moved, None, (4, 4)), model.heads[0](tokens, None, (4, 4))[:, order])


def test_simmim_masks_30_of_49_units_and_predicts_raw_pixels():
    method = RECIPES["simmim_vit_base"].config.method
    (view,) = method.masker.views(torch.arange(2), (14, 14), 1, 0)
    assert view.masked.sum(1).tolist() == [120, 120]
    assert method.target(0) == PixelTarget(normalize=False, kind="l1")


@pytest.mark.parametrize(("name", "cls_decays"), [("simmim_vit_test", False), ("fastmim_vit_test", True)])
def test_mask_tokens_are_decayed(name, cls_decays):
    """As in the published programs: SimMIM's ViT exempts the cls token alone, FastMIM no token."""
    config = RECIPES[name].config
    decayed = {name for name, p in MIM(config.method).named_parameters() if config.optim.decays(name, p)}
    assert {"mask_embedding.mask_token", "encoder.patch_embed.weight"} <= decayed
    assert ("encoder.cls_token" in decayed) == cls_decays


def test_maskfeat_masks_78_patches_of_every_image():
    method = RECIPES["maskfeat_vit_base"].config.method
    (view,) = method.masker.views(torch.arange(5), (14, 14), 1, 0)
    assert view.masked.sum(1).tolist() == [78] * 5
    assert method.target(0) == HogTarget(bins=9, cells=2)


def test_vitfreeze_is_localmim_with_another_schedule():
    frozen, plain = RECIPES["vitfreeze_vit_base"].config, RECIPES["localmim_vit_base"].config
    assert frozen.method == plain.method
    assert frozen.schedule == FreezeOut(warmup_epochs=10, t0=0.8, power=3, heads="global", final_lr=1e-6)
    # Heads go with the layers that feed them: epochs 62.1, 68.6 and 91.3.
    model = MIM(RECIPES["vitfreeze_vit_test"].config.method)
    ends = [10 + 90 * frozen.schedule.share(tap + 1, 12) for tap in frozen.method.taps]
    assert ends == pytest.approx([62.08, 68.59, 91.30, 100], abs=0.005)
    assert [model.is_frozen(stage, 3) for stage in range(4)] == [True, False, False, False]


@pytest.mark.parametrize(("variant", "rate"), [("published", "scaled"), ("unscaled", "unscaled")])
def test_vitfreeze_has_the_rates_of_its_published_program(variant, rate):
    config = RECIPES[f"vitfreeze_vit_base_{variant}"].config
    assert config.schedule == replace(
        RECIPES["vitfreeze_vit_base"].config.schedule, rate=rate, warmup_to="common", heads="group"
    )
    assert config.method == RECIPES["localmim_vit_base"].config.method


SMALL = [recipe.name for recipe in SMALL_RECIPES if recipe.config.method.distillation is None]


class OneLoss:
    """An update that backpropagates from one of the losses that it is given, by its number, and applies nothing."""

    def __init__(self, number):
        self.number, self.given = number, 0

    def scale(self, loss):
        self.given += 1
        return loss * (self.given - 1 == self.number)

    def apply(self):
        pass


@pytest.mark.parametrize("name", SMALL)
def test_how_far_the_last_loss_travels(name):
    """To the images, or no further than its own stage."""
    torch.manual_seed(0)
    model = MIM(RECIPES[name].config.method)
    side, last = model.method.encoder.image_size.height, model.num_stages - 1
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    batch = MicroBatch(images, model.views(images, torch.arange(2), 0))
    isolated = isinstance(model.method.flow, Local)
    updates = [OneLoss(0 if k == last else None) for k in range(last + 1)] if isolated else [OneLoss(last)]
    model.method.flow.step(model, [batch], updates)
    layers = [(model.method.encoder.layer_group(name) - 1, p.grad) for name, p in model.encoder.named_parameters()]
    stages = [[grad for layer, grad in layers if layer in model.stage_layers(k)] for k in range(last + 1)]
    reached = [any(grad is not None and grad.any() for grad in stage) for stage in stages]
    assert reached == [not isolated or k == last for k in range(last + 1)]


def loss_of_another_truth(model, stage, tokens, images, view, positions):
    """Compute the loss where the truth differs in some cells, [B, 1, rows, columns]."""
    pixels = interpolate(positions.float(), size=images.shape[2:], mode="nearest") > 0
    target = model.targets([stage], images)[stage]
    if target.vectors is not None:
        target = replace(target, vectors=torch.where(positions.flatten(2).mT, 7.0, target.vectors))
    other = torch.where(pixels, images.flip(0), images)
    return model.loss(stage, tokens, other, view, target, view.masked.sum())


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_what_is_visible_does_not_count(name):
    """A truth that differs in visible cells alone gives the same loss, one that differs in others another."""
    torch.manual_seed(0)
    model = MIM(RECIPES[name].config.method)
    side = model.method.encoder.image_size.height
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    tokens = images
    for stage, view in enumerate(model.views(images, torch.arange(2), 0)):
        tokens = model.encode(stage, tokens, view)
        cells = [int(n * model.method.head(stage).scale) for n in model.method.grid(stage, view.grid)]
        masked = adaptive_avg_pool2d(view.masked.view(2, 1, *view.grid), cells) > 0
        truths = (torch.zeros_like(masked), ~masked, masked)
        same, visible, other = (
            loss_of_another_truth(model, stage, tokens, images, view, positions) for positions in truths
        )
        assert same == visible != other

"""Heads that decode a share of the masked tokens, or attend to visible tokens alone, against plain computations."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bimkern.mim.flow import MicroBatch, StepOptions
from bimkern.mim.loss_weights import loss_weights
from bimkern.mim.masking.choice import num_chosen
from bimkern.mim.model import MIM
from bimkern.mim.operations import head_flops
from bimkern.mim.targets import HogTarget
from bimkern.models.heads import DecoderConfig
from bimkern.models.layers import set_compute_dtype
from bimkern.recipes import RECIPES

IDS = torch.arange(3)
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def method_of(recipe="mae_vit_test", target=None, **head):
    method = RECIPES[recipe].config.method
    targets = method.targets if target is None else (target,)
    return replace(method, heads=tuple(replace(one, **head) for one in method.heads), targets=targets)


def model_of(method):
    torch.manual_seed(3)
    model = MIM(method).double()
    set_compute_dtype(model, torch.float64)
    return model


def loss_of(model, stage=0, **options):
    views = model.views(IMAGES, IDS, 8, **options)
    tokens = IMAGES
    for k in range(stage + 1):
        tokens = model.encode(k, tokens, views[k])
    target = model.targets([stage], IMAGES)[stage]
    return model.loss(stage, tokens, IMAGES, views[stage], target, views[stage].masked.sum())


@pytest.mark.parametrize("recipe", ["mae_vit_test", "bim_vit_test_growing", "greenmim_swin_tiny_test"])
def test_every_stage_chooses_as_many_masked_tokens_of_every_image_for_itself(recipe):
    model = MIM(method_of(recipe, share=0.4))
    ids = torch.arange(16)
    size = model.method.encoder.image_size
    images = torch.zeros(16, 3, *size, dtype=torch.uint8)
    whole, some = (model.views(images, ids, 8, whole=choice) for choice in (True, False))
    for stage, (before, view) in enumerate(zip(whole, some, strict=True)):
        grid = model.method.grid(stage, view.grid)
        masked, weights = before.weights(grid), view.weights(grid)
        assert before.chosen is None
        assert view.chosen.shape == (16, num_chosen(0.4, int(masked[0].sum())))
        assert torch.equal(weights, torch.zeros_like(weights).scatter(1, view.chosen, 1.0))
        assert (weights <= masked).all()
        assert len({tuple(row) for row in view.chosen.tolist()}) > 8
    again = model.views(images[:5], ids[:5], 8)
    assert all(torch.equal(a.chosen, b.chosen[:5]) for a, b in zip(again, some, strict=True))
    weights = loss_weights(model, ids, size, 8)
    assert torch.equal(weights, torch.stack([view.masked.sum() for view in some]))
    if recipe == "bim_vit_test_growing":
        shared = [set(map(tuple, view.chosen.tolist())) for view in some]
        assert not set.intersection(*shared)


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("recipe", ["mae_vit_test", "bim_vit_test_growing", "greenmim_swin_tiny_test"])
def test_loss_weights_of_a_step_are_those_of_its_views_without_a_choice(recipe, share, monkeypatch):
    model = MIM(method_of(recipe, share=share))
    ids, size = torch.arange(9), model.method.encoder.image_size
    views = model.views(torch.zeros(9, 3, *size, dtype=torch.uint8), ids, 8)
    for choosing in ("choose", "masked_ids"):
        monkeypatch.setattr(f"bimkern.mim.model.{choosing}", None)
    assert torch.equal(loss_weights(model, ids, size, 8), torch.stack([view.masked.sum() for view in views]))


def test_uniform_choice():
    model = MIM(method_of(share=0.25))
    ids = torch.arange(4000)
    (view,) = model.method.views(ids, (4, 4), 1)
    (masked,) = model.method.views(ids, (4, 4), 1, whole=True)
    share = view.masked.sum(0) / masked.masked.sum(0)
    assert (share - 0.25).abs().max() < 0.03


@pytest.mark.parametrize("target", [None, HogTarget()])
def test_all_chosen_is_what_is_decoded_whole(target, monkeypatch):
    model = model_of(method_of(target=target))
    expected = loss_of(model)
    monkeypatch.setattr("bimkern.mim.model.decodes_partly", lambda head, whole=False: True)
    torch.testing.assert_close(loss_of(model), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [None, 1.0, 2.0])
def test_what_is_not_chosen_does_not_count(scale):
    """The prediction of a chosen token does not depend on tokens that are masked too, nor does their error count."""
    model = model_of(method_of(share=0.3, attends="visible", match_scale=scale, target=HogTarget()))
    views = model.views(IMAGES, IDS, 8)
    (view,) = views
    tokens = model.encode(0, IMAGES, view)
    some = model.predict(0, tokens, view)
    (whole,) = model.views(IMAGES, IDS, 8, whole=True)
    assert whole.chosen.shape[1] > view.chosen.shape[1]
    predicted = model.predict(0, tokens, whole)
    if scale != 2.0:
        index = view.chosen.unsqueeze(-1).expand(-1, -1, some.shape[2])
        torch.testing.assert_close(some.gather(1, index), predicted.gather(1, index))
    args = (IMAGES, view, model.targets([0], IMAGES)[0], view.masked.sum())
    loss = model.loss(0, tokens, *args)
    assert loss > 0
    loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name.startswith("heads"))


def layer_norm(x, weights, name):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def cross_layer(x, context, weights, name):
    h = layer_norm(x, weights, f"{name}.norm1")
    heads = [part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (
        linear(h, weights, f"{name}.attn.q"), *linear(context, weights, f"{name}.attn.kv").chunk(2, dim=-1)
    )]  # fmt: skip
    q, k, v = heads
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
    x = x + linear((scores @ v).transpose(1, 2).flatten(2), weights, f"{name}.attn.proj")
    h = layer_norm(x, weights, f"{name}.norm2")
    return x + linear(torch.nn.functional.gelu(linear(h, weights, f"{name}.mlp.fc1")), weights, f"{name}.mlp.fc2")


def test_attention_to_visible_tokens_equals_an_independent_computation():
    model = model_of(method_of(share=0.5, attends="visible", num_heads=2))
    (view,) = model.views(IMAGES, IDS, 8)
    tokens = model.encode(0, IMAGES, view)
    head, weights = model.heads[0], dict(model.named_parameters())
    features = head.chosen_features(tokens, view.decoded, view.chosen, view.grid)
    pos = head.positions(view.grid, tokens)
    x = linear(layer_norm(tokens, weights, "heads.0.in_norm"), weights, "heads.0.embed")
    for b in range(3):
        context = torch.cat([x[b, :1], x[b, 1:] + pos[view.decoded[b]]])[None]
        context = layer_norm(context, weights, "heads.0.context_norm")
        y = (weights["heads.0.mask_token"][0] + pos[view.chosen[b]])[None]
        for i in range(len(head.blocks)):
            y = cross_layer(y, context, weights, f"heads.0.blocks.{i}")
        y = layer_norm(y, weights, "heads.0.norm")
        torch.testing.assert_close(features[b], y[0], rtol=1e-9, atol=1e-12)


class Ungraded:
    """An update that changes nothing."""

    def scale(self, loss):
        return loss

    def apply(self):
        pass


@pytest.mark.parametrize("attends", ["all", "visible"])
@pytest.mark.parametrize("recipe", ["bim_vit_test", "bim_vit_test_growing"])
def test_a_step_in_slices_and_micro_batches_is_one_step(recipe, attends):
    method, images = method_of(recipe, share=0.5, attends=attends), torch.cat([IMAGES, IMAGES[:1].flip(3)])
    losses = []
    for sizes, slices in (((4,), 1), ((2, 2), 2)):
        model = model_of(method)
        batches, first = [], 0
        for size in sizes:
            rows = slice(first, first + size)
            batches.append(MicroBatch(images[rows], model.views(images[rows], torch.arange(4)[rows], 0)))
            first += size
        updates = [Ungraded() for _ in method.flow.partition(model)]
        losses.append(method.flow.step(model, batches, updates, StepOptions(slices=slices)))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=0)


def test_operations_are_counted_as_they_are_done():
    for attends in ("all", "visible"):
        method = method_of(share=0.5, attends=attends)
        model = MIM(method)
        images, ids = IMAGES[:1], IDS[:1]
        (view,) = model.views(images, ids, 8)
        tokens = model.encode(0, images, view)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # which it counts on a CPU
            model.predict(0, tokens, view)
        assert counter.get_total_flops() == head_flops(method, 0, view)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0.0}, r"DecoderConfig: share must be in \(0, 1\], got 0.0"),
        ({"share": 1.5}, r"DecoderConfig: share must be in \(0, 1\], got 1.5"),
        ({"attends": "some"}, "DecoderConfig: attends must be all or visible, got 'some'"),
        ({"match_scale": 0.5, "share": 0.5}, "DecoderConfig: a match_scale of 0.5 reads all tokens"),
    ],
)
def test_wrong_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**change)


def test_a_mask_that_leaves_nothing_out_is_refused():
    method = RECIPES["fastmim_vit_test"].config.method
    with pytest.raises(ValueError, match=r"^Method: BlockPixels lets all patches enter the encoder, and a head that"):
        replace(method, heads=tuple(replace(head, share=0.5) for head in method.heads))


def test_what_is_evaluated_is_whole():
    assert loss_of(model_of(method_of(share=0.5)), whole=True) == loss_of(model_of(method_of()))

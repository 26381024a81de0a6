"""In training the last layer of a decoder computes masked tokens alone; losses and gradients are as for all tokens."""

from dataclasses import replace

import pytest
import torch

from bimkern.mim.model import MIM
from bimkern.mim.targets import HogTarget
from bimkern.models.layers import Attention, TransformerLayer, set_compute_dtype
from bimkern.recipes import RECIPES

IDS = torch.arange(3)


def model_of(recipe, **head):
    method = RECIPES[recipe].config.method
    model = MIM(replace(method, heads=tuple(replace(one, **head) for one in method.heads))).double()
    set_compute_dtype(model, torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():  # with zero biases, one that is left out would not show
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images_of(model):
    side = model.method.encoder.image_size.height
    return torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)


def losses(model, images, views):
    found, tokens = [], images
    targets = model.targets(range(len(views)), images)
    for stage, view in enumerate(views):
        tokens = model.encode(stage, tokens, view)
        found.append(model.loss(stage, tokens, images, view, targets[stage], view.masked.sum()))
    return torch.stack(found)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize(
    "recipe",
    [
        "mae_vit_test",
        "bim_vit_test_growing",
        "localmim_vit_test",
        "greenmim_swin_tiny_test",
        "bim_hog_vit_test",
    ],
)
def test_losses_and_gradients_are_those_of_all_tokens(recipe, depth):
    model = model_of(recipe, depth=depth)
    images = images_of(model)
    some, whole = (model.views(images, IDS, 5, whole=choice) for choice in (False, True))
    skipping = [head.skips_visible for head in (model.method.head(k) for k in range(model.num_stages))]
    assert [view.chosen is not None for view in some] == skipping
    assert skipping == [model.method.head(k).scale >= 1 for k in range(model.num_stages)]
    assert all(view.chosen is None for view in whole)
    results = []
    for views in (some, whole):
        found = losses(model, images, views)
        results.append((found, torch.autograd.grad(found.sum(), list(model.parameters()), allow_unused=True)))
    (loss, grads), (expected, expected_grads) = results
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grads, expected_grads)


def test_what_is_masked_is_chosen_once_for_stages_that_share_it():
    model = model_of("bim_vit_test")
    views = model.views(images_of(model), IDS, 5)
    assert all(view.chosen is views[0].chosen for view in views)
    assert torch.equal(views[0].masked, torch.zeros_like(views[0].masked).scatter(1, views[0].chosen, 1.0))


def test_the_last_layer_computes_no_visible_token():
    model = model_of("mae_vit_test", depth=2)
    images, ran = images_of(model), []
    for layer in model.heads[0].blocks:
        layer.mlp.register_forward_pre_hook(lambda _, inputs: ran.append(inputs[0].shape[1]))
    (view,) = model.views(images, IDS, 5)
    losses(model, images, [view])
    masked = view.chosen.shape[1]
    assert ran == [model.method.encoder.num_prefix + view.masked.shape[1], masked]
    assert masked == int(view.masked[0].sum())


def test_a_prediction_to_be_seen_is_of_all_tokens():
    model = model_of("mae_vit_test")
    images = images_of(model)
    predicted = {}
    for whole in (False, True):
        (view,) = model.views(images, IDS, 5, whole=whole)
        predicted[whole] = model.predict(0, model.encode(0, images, view), view)
    weights = view.masked[..., None]
    torch.testing.assert_close(predicted[False], predicted[True] * weights)
    assert predicted[True][view.masked == 0].abs().min() > 0


@pytest.mark.parametrize("recipe", ["fastmim_vit_test", "simmim_vit_test", "bim_fastmim_vit_test"])
def test_where_all_tokens_enter_the_encoder_none_is_skipped(recipe):
    model = model_of(recipe)
    assert all(view.chosen is None for view in model.views(images_of(model), IDS, 5))


def test_a_target_whose_head_reads_all_tokens_is_left_alone():
    method = RECIPES["localmim_vit_test"].config.method
    assert isinstance(method.targets[0], HogTarget)
    assert [head.skips_visible for head in method.heads] == [True, True, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_computes_some_tokens_as_among_all(dtype):
    layer, x = TransformerLayer(32, 4), torch.randn(2, 9, 32)
    set_compute_dtype(layer, dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    rows = torch.tensor([1, 4, 5, 8])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(layer(x[:, rows], x), layer(x)[:, rows], rtol=tolerance, atol=tolerance)


def test_queries_and_context_have_their_own_weights():
    attention = Attention(8, 2).double()
    x, context = torch.randn(1, 3, 8, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    q, k, v = attention._heads_between(x, context)
    own, theirs = attention._heads(x), attention._heads(context)
    for found, expected in zip((q, k, v), (own[0], theirs[1], theirs[2]), strict=True):
        torch.testing.assert_close(found, expected)

"""What match_loss and match_predict mean, on every backend."""

import pytest
import torch
import torch.nn.functional as F
from matching import DEFAULT, SCALES, named, ours, predictions, sample
from torch.autograd import gradcheck

from bimkern.ops import match_loss, match_predict

GRID = (DEFAULT["rows"], DEFAULT["columns"])
TINY = {"B": 2, "rows": 2, "columns": 4, "D": 4, "P": 3}


@pytest.fixture(autouse=True, params=["chosen", "reference"])
def backend(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setenv("BIMKERN_BACKEND", "reference")


def convolutions(features, scale, grid, layers):
    """The published layers, as convolutions: predictions [B, M, P]."""
    x = features.mT.unflatten(2, grid)  # [B, D, rows, columns]
    if scale == 0.5:
        x = F.avg_pool2d(x, 2)
    if scale > 1:
        x = F.conv_transpose2d(x, layers.up1_weight, layers.up1_bias, stride=2)
    if scale == 4:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, x.shape[-1:], layers.norm_weight, layers.norm_bias, 1e-6)
        x = F.conv_transpose2d(F.gelu(x).permute(0, 3, 1, 2), layers.up2_weight, layers.up2_bias, stride=2)
    return F.conv2d(x, layers.pred_weight, layers.pred_bias).flatten(2).mT


@pytest.mark.parametrize("scale", SCALES)
def test_predictions_are_those_of_convolutions(device, scale):
    features, _, _, *parameters = sample(device, torch.float64, scale, **DEFAULT, own=torch.float64)
    layers = named(scale, parameters)
    got = match_predict(features, layers, scale, grid=GRID)
    torch.testing.assert_close(got, convolutions(features, scale, GRID, layers))


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_loss_is_the_mean_over_the_cells_of_masked_tokens(device, scale):
    features, target, mask, *parameters = sample(device, torch.float64, scale, **DEFAULT, own=torch.float64)
    layers = named(scale, parameters)
    rows = mask.bool().unflatten(1, GRID).repeat_interleave(scale, 1).repeat_interleave(scale, 2).flatten(1)
    error = (convolutions(features, scale, GRID, layers) - target)[rows]
    torch.testing.assert_close(ours(scale, GRID)(features, target, mask, *parameters), error.square().mean())
    torch.testing.assert_close(ours(scale, GRID, kind="l1")(features, target, mask, *parameters), error.abs().mean())


def test_pooled_cells_count_by_the_share_that_is_masked(device):
    """Wang et al. 2023, the published program: 0 to 4 masked tokens of a cell weigh 0, .25, .5, .75 and 1."""
    corners = [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]]
    cells = torch.tensor(corners, device=device, dtype=torch.float64).view(2, 3, 2, 2)
    mask = cells.permute(0, 2, 1, 3).reshape(1, 24)
    features, target, _, *parameters = sample(device, torch.float64, 0.5, **DEFAULT | {"B": 1}, own=torch.float64)
    error = convolutions(features, 0.5, GRID, named(0.5, parameters)) - target
    weight = torch.tensor([0, 0.25, 0.5, 0.75, 1, 0.25], device=device, dtype=torch.float64)
    want = (error.square().mean(-1)[0] * weight).sum() / 2.75
    torch.testing.assert_close(ours(0.5, GRID)(features, target, mask, *parameters), want)


@pytest.mark.parametrize(("scale", "whole"), [(4, 2352), (2, 588), (1, 147), (0.5, 36.75)])
def test_the_denominator_at_14_by_14_with_75_percent_masked(device, scale, whole):
    dims = {"B": 5, "rows": 14, "columns": 14, "D": 4, "P": 2}
    features, target, mask, *parameters = sample(device, torch.float32, scale, **dims)
    want = ours(scale, None)(features, target, mask, *parameters)
    denominator = torch.tensor(5.0 * whole, device=device)
    assert torch.equal(ours(scale, None, denominator=denominator)(features, target, mask, *parameters), want)


@pytest.mark.parametrize("scale", SCALES)
def test_loss_gradients(device, scale):
    features, target, mask, *parameters = sample(device, torch.float64, scale, **TINY, own=torch.float64)
    leaves = [features.requires_grad_(), *(p.requires_grad_() for p in parameters)]
    assert gradcheck(lambda x, *layers: ours(scale, (2, 4))(x, target, mask, *layers), leaves)


@pytest.mark.parametrize("scale", SCALES)
def test_prediction_gradients(device, scale):
    features, _, _, *parameters = sample(device, torch.float64, scale, **TINY, own=torch.float64)
    predict, _reference = predictions(scale, (2, 4))
    assert gradcheck(predict, [features.requires_grad_(), *(p.requires_grad_() for p in parameters)])


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_visible_tokens_do_not_count(device, scale):
    """At scale 0.5 they do: a cell's prediction is that of its four tokens."""
    features, target, mask, *parameters = sample(device, torch.float32, scale, **DEFAULT)
    changed = features + 100 * (1 - mask).unsqueeze(-1)
    loss = ours(scale, GRID)
    assert torch.equal(loss(changed, target, mask, *parameters), loss(features, target, mask, *parameters))


@pytest.mark.parametrize("scale", SCALES)
def test_visible_cells_do_not_count(device, scale):
    features, target, mask, *parameters = sample(device, torch.float32, scale, **DEFAULT, masked=0.25)
    mask.unflatten(1, GRID)[:, :2, :2] = 0  # a whole cell of scale 0.5
    changed = target.clone()
    changed.unflatten(1, (int(4 * scale), int(6 * scale)))[:, : int(2 * scale), : int(2 * scale)] += 100
    loss = ours(scale, GRID)
    assert torch.equal(loss(features, changed, mask, *parameters), loss(features, target, mask, *parameters))


@pytest.mark.parametrize("scale", SCALES)
def test_parts_with_the_whole_denominator_add_up(device, scale):
    features, target, mask, *parameters = sample(device, torch.float64, scale, **DEFAULT, own=torch.float64)
    mask[0, :3] = 0  # not as many everywhere
    loss = ours(scale, GRID, denominator=mask.sum() * scale**2)
    parts = [loss(features[i : i + 1], target[i : i + 1], mask[i : i + 1], *parameters) for i in range(3)]
    torch.testing.assert_close(sum(parts), ours(scale, GRID)(features, target, mask, *parameters))


@pytest.mark.parametrize("scale", SCALES)
def test_nothing_masked_gives_zero_and_zero_gradients(device, scale):
    features, target, mask, *parameters = sample(device, torch.float32, scale, **DEFAULT)
    leaves = [features.requires_grad_(), *(p.requires_grad_() for p in parameters)]
    loss = ours(scale, GRID)(features, target, torch.zeros_like(mask), *parameters)
    assert loss == 0
    assert not any(grad.any() for grad in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("denominator", [7.0, 7, torch.tensor(7.0), torch.tensor(7.0, dtype=torch.float64)], ids=repr)
def test_takes_a_number_or_a_scalar_tensor(device, denominator):
    features, target, mask, *parameters = sample(device, torch.float32, 2, **DEFAULT)
    given = denominator.to(device) if isinstance(denominator, torch.Tensor) else denominator
    got = ours(2, GRID, denominator=given)(features, target, mask, *parameters)
    want = ours(2, GRID)(features, target, mask, *parameters)
    torch.testing.assert_close(got * 7, want * mask.sum() * 4)
    assert got.dtype == torch.float32


@pytest.mark.parametrize("scale", SCALES)
def test_a_denominator_of_zero_gives_zero_and_zero_gradients(device, scale):
    features, target, mask, *parameters = sample(device, torch.float32, scale, **DEFAULT)
    leaves = [features.requires_grad_(), *(p.requires_grad_() for p in parameters)]
    loss = ours(scale, GRID, denominator=torch.tensor(0.0, device=device))(features, target, mask, *parameters)
    assert loss == 0
    assert not any(grad.any() for grad in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("scale", SCALES)
def test_the_sign_of_a_denominator_is_that_of_the_loss(device, scale):
    """A number below zero is refused, but a tensor cannot be read without waiting for its device."""
    features, target, mask, *parameters = sample(device, torch.float32, scale, **DEFAULT)
    plus, minus = (
        ours(scale, GRID, denominator=torch.tensor(value, device=device))(features, target, mask, *parameters)
        for value in (2.0, -2.0)
    )
    assert minus == -plus
    assert plus > 0


@pytest.mark.parametrize("scale", SCALES)
def test_half_features_get_half_gradients_from_a_float32_loss(device, scale):
    features, target, mask, *parameters = sample(device, torch.bfloat16, scale, **DEFAULT)
    leaves = [features.requires_grad_(), *(p.requires_grad_() for p in parameters)]
    loss = ours(scale, GRID)(features, target, mask, *parameters)
    assert loss.dtype == torch.float32
    found = torch.autograd.grad(loss, leaves)
    assert [grad.dtype for grad in found] == [torch.bfloat16] + [torch.float32] * (len(leaves) - 1)


@pytest.mark.parametrize("scale", SCALES)
def test_autocast_leaves_the_products_alone(device, scale):
    inputs = sample(device, torch.float32, scale, **DEFAULT)
    want = ours(scale, GRID)(*inputs)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(ours(scale, GRID)(*inputs), want)


def test_the_sides_are_those_of_a_square_by_default(device):
    features, target, mask, *parameters = sample(device, torch.float32, 2, **DEFAULT | {"columns": 4})
    want = match_loss(features, named(2, parameters), target, mask, 2, grid=(4, 4))
    assert torch.equal(match_loss(features, named(2, parameters), target, mask, 2), want)

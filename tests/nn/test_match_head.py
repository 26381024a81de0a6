"""MatchHead: the ops with the parameters of ordinary layers."""

import pytest
import torch
from matching import DEFAULT, SCALES, compiler, sample
from torch import nn

from bimkern.nn import MatchHead
from bimkern.ops import match_loss, match_predict

GRID = (DEFAULT["rows"], DEFAULT["columns"])


class Published(nn.Module):
    """The layers of LocalMIM in their published order, applied as convolutions."""

    def __init__(self, width, out_length, scale):
        super().__init__()
        rescale = {1: nn.Identity(), 0.5: nn.AvgPool2d(2)}.get(scale)
        if scale == 2:
            rescale = nn.ConvTranspose2d(width, width // 2, 2, 2)
        self.norm = nn.LayerNorm(width // 2, eps=1e-6) if scale == 4 else None
        if scale == 4:
            rescale = nn.ConvTranspose2d(width, width // 2, 2, 2)
            self.second = nn.ConvTranspose2d(width // 2, width // 4, 2, 2)
        self.rescale = rescale
        self.pred = nn.Conv2d(int(width / max(1, scale)), out_length, 1)

    def forward(self, features, grid):
        x = self.rescale(features.mT.unflatten(2, grid))
        if self.norm is not None:
            x = self.second(nn.functional.gelu(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))
        return self.pred(x).flatten(2).mT


@pytest.mark.parametrize("scale", SCALES)
def test_published_weights_load_by_renaming(device, scale):
    published = Published(32, 6, scale).to(device)
    renamed = {"rescale": "up1", "second": "up2", "norm": "norm", "pred": "pred"}
    head = MatchHead(32, 6, scale).to(device)
    weights = {name.partition("."): value for name, value in published.state_dict().items()}
    head.load_state_dict({renamed[layer] + dot + rest: value for (layer, dot, rest), value in weights.items()})
    features = torch.randn(3, 24, 32, device=device)
    torch.testing.assert_close(head(features, GRID), published(features, GRID))


@pytest.mark.parametrize("scale", SCALES)
def test_layers_start_as_the_framework_starts_them(scale):
    torch.manual_seed(1)
    head = MatchHead(32, 6, scale)
    torch.manual_seed(1)
    layers = [nn.ConvTranspose2d(32, 16, 2, 2)] if scale > 1 else []
    layers += [nn.LayerNorm(16), nn.ConvTranspose2d(16, 8, 2, 2)] if scale == 4 else []
    layers += [nn.Conv2d(int(32 / max(1, scale)), 6, 1)]
    want = [parameter for layer in layers for parameter in layer.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), want, strict=True))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("scale", SCALES)
def test_is_the_ops(device, scale, dtype):
    head = MatchHead(32, 6, scale).to(device)
    head.compute_dtype = dtype
    features, target, mask, *_ = sample(device, torch.float32, scale, **DEFAULT)
    options = {"grid": GRID, "dtype": dtype}
    want = match_predict(features, head.layers, scale, **options)
    assert torch.equal(head(features, GRID), want)
    for denominator in (None, 7.0, torch.tensor(7.0, device=device)):
        want = match_loss(features, head.layers, target, mask, scale, denominator=denominator, **options)
        assert torch.equal(head.loss(features, target, mask, GRID, denominator), want)


@pytest.mark.parametrize("scale", SCALES)
def test_every_parameter_learns(device, scale):
    head = MatchHead(32, 6, scale).to(device)
    features, target, mask, *_ = sample(device, torch.float32, scale, **DEFAULT)
    head.loss(features, target, mask, GRID).backward()
    assert all(parameter.grad.any() for parameter in head.parameters())


@pytest.mark.parametrize("scale", SCALES)
def test_compiles_without_graph_break(device, scale):
    head = MatchHead(32, 6, scale).to(device)
    features, target, mask, *_ = sample(device, torch.float32, scale, **DEFAULT)
    compiled = torch.compile(head.loss, fullgraph=True, backend=compiler(scale))
    losses = compiled(features, target, mask, GRID), head.loss(features, target, mask, GRID)
    torch.testing.assert_close(*losses)
    got, want = (torch.autograd.grad(loss, list(head.parameters())) for loss in losses)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"^MatchHead: scale must be one of 4, 2, 1, 0.5, got 8"):
        MatchHead(32, 6, 8)
    with pytest.raises(ValueError, match=r"^MatchHead: width must be a multiple of 4 at scale=4, got 30"):
        MatchHead(30, 6, 4)

"""CMT, from its paper: sizes, attention to fewer keys with a bias for every pair, and images of other sizes."""

import math
import re

import pytest
import torch
from small_backbones import backbone

from bimkern.models.cmt import CMT, CMT_SMALL, CMTConfig, LightAttention
from bimkern.models.encoder import Level, WholeImages

SMALL = backbone("cmt")


def test_the_small_model_is_that_of_table_1():
    levels = [Level(width, 4 * 2**i) for i, width in enumerate((64, 128, 256, 512))]
    ends = (3, 6, 22, 25)
    assert [CMT_SMALL.level(end) for end in ends] == levels
    assert CMT_SMALL.level(0) == levels[0]
    assert [CMT_SMALL.level(end + 1) for end in ends[:3]] == levels[1:]
    with torch.device("meta"):
        model = CMT(CMT_SMALL)
    biases = {name: p.numel() for name, p in model.named_parameters() if name.endswith("attn.bias")}
    assert list(biases.values()) == [3136 * 49] * 3 + [2 * 784 * 49] * 3 + [4 * 196 * 49] * 16 + [8 * 49 * 49] * 3
    with_head = sum(p.numel() for p in model.parameters()) - sum(biases.values()) + 513 * 1280 + 1281 * 1000
    assert with_head == pytest.approx(25.14e6, rel=0.05)  # as reported, with a projection and a classifier


@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_is_that_of_the_paper(reduction):
    """Equation 3: softmax(Q K'^T / sqrt(d) + B) V', K' and V' by k x k depthwise convolutions of stride k."""
    torch.manual_seed(0)
    attention = LightAttention(8, 2, reduction, (4, 4)).double()
    x = torch.randn(3, 16, 8, dtype=torch.float64)
    q, k, v = attention.query(x), attention.key(x), attention.value(x)
    if reduction > 1:
        k, v = (
            torch.stack(
                [
                    torch.einsum("bpqd,dpq->bd", part.view(3, 4, 4, 8)[:, i : i + 2, j : j + 2], conv.weight[:, 0])
                    + conv.bias
                    for i in (0, 2)
                    for j in (0, 2)
                ],
                dim=1,
            )
            for part, conv in ((k, attention.fewer_keys), (v, attention.fewer_values))
        )
    heads = []
    for head in range(2):
        of = slice(4 * head, 4 * head + 4)
        scores = q[..., of] @ k[..., of].mT / math.sqrt(4) + attention.bias[head]
        heads.append(scores.softmax(-1) @ v[..., of])
    torch.testing.assert_close(attention(x, (4, 4)), attention.proj(torch.cat(heads, -1)))


@pytest.mark.parametrize("grid", [(8, 8), (4, 8), (6, 4)])
def test_a_bias_is_resized_over_queries_and_keys(grid):
    attention = LightAttention(8, 2, 2, (4, 4))
    rows = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(2, 4, 4, 2, 2)
    columns = torch.arange(2.0).view(1, 1, 1, 1, 2).expand(2, 4, 4, 2, 2)
    with torch.no_grad():
        attention.bias.copy_((rows + 10 * columns).reshape(2, 16, 4))
    bias = attention.bias_of(grid).view(2, *grid, grid[0] // 2, grid[1] // 2)
    torch.testing.assert_close(bias[:, :, 0], bias[:, :, -1])  # a row's bias depends on its number alone
    torch.testing.assert_close(bias[..., 0, :], bias[..., -1, :])
    assert (bias.diff(dim=1) > 0).all()
    assert attention.bias_of((4, 4)) is attention.bias
    attention.bias_of(grid).sum().backward()
    assert attention.bias.grad.abs().min() > 0


def test_a_block_keeps_to_its_images():
    """In evaluation, whatever else is in the batch."""
    model = CMT(SMALL).eval()
    images = torch.randn(2, 3, 64, 64)

    def features(images):
        tokens = model.embed(images)
        for layer in range(SMALL.depth):
            tokens = model.run_layer(layer, tokens, WholeImages((16, 16)))
        return tokens

    torch.testing.assert_close(features(images)[1:], features(images[1:]))


@pytest.mark.parametrize(("depth", "depths"), [(1, (1,)), (2, (1, 1)), (3, (1, 2)), (4, (1, 2, 1))])
def test_a_cut_has_the_first_blocks(depth, depths):
    cut = SMALL.cut(depth)
    assert (cut.depths, cut.depth) == (depths, depth)
    assert [cut.level(i) for i in range(depth + 1)] == [SMALL.level(i) for i in range(depth + 1)]
    assert CMT(cut).state_dict().keys() == {n for n in CMT(SMALL).state_dict() if SMALL.layer_group(n) <= depth}
    assert cut.cut(depth) == cut


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_size": 48}, "CMTConfig: image_size must be a multiple of 32, got 48"),
        ({"widths": (8, 16)}, "CMTConfig: widths must hold a number from 1 up for each of 4 stages, got (8, 16)"),
        (
            {"depths": (3, 3, 16, 0)},
            "CMTConfig: depths must hold a number from 1 up for each of 4 stages, got (3, 3",
        ),
        ({"num_heads": (3, 2, 4, 8)}, "CMTConfig: widths must be multiples of num_heads=(3, 2, 4, 8), got (64, 128"),
        ({"mlp_ratio": 0.0}, "CMTConfig: mlp_ratio must be above 0 and finite, got 0.0"),
        ({"channels": 0}, "CMTConfig: channels must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_one_line(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CMTConfig(**vars(CMT_SMALL) | given)

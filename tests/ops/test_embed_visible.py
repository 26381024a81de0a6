import pytest
import torch
from embedding import CASES, DEFAULT, GRADS, IMAGES, draw_images, in_dtype, ours, sample, torchs
from tolerance import FORWARD_FACTOR, assert_no_worse_than_torch
from torch.autograd import gradcheck, gradgradcheck

from bimkern.ops import embed_visible
from bimkern.ops._check import FLOATS


@pytest.mark.parametrize("images", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("dims", CASES, ids=str)
def test_equals_reference(device, dims, images):
    assert_no_worse_than_torch(ours, torchs, sample(device, images=images, **dims), GRADS)


@pytest.mark.parametrize("images", IMAGES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("p", [14, 16])
def test_equals_reference_in_every_dtype(device, p, dtype, images):
    inputs = sample(device, images=images, **DEFAULT | {"p": p, "H": 4 * p, "W": 3 * p})
    assert_no_worse_than_torch(in_dtype(ours, dtype), in_dtype(torchs, dtype), inputs, GRADS)


@pytest.mark.parametrize("images", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("odd", [{"D": 1}, {"B": 1, "C": 1, "H": 1, "W": 1, "p": 1, "R": 0, "K": 1, "D": 1}], ids=str)
def test_single_numbers(device, odd, images):
    inputs = sample(device, torch.float64, images, **DEFAULT | odd)  # too few for luck in rounding to even out
    cotangent = torch.randn_like(ours(*inputs))
    torch.testing.assert_close(with_grads(ours, cotangent, inputs), with_grads(torchs, cotangent, inputs))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_takes_parameters_in_float64(device, dtype):
    inputs = sample(device, torch.float64, **DEFAULT)
    out, truth = ours(*inputs, dtype=dtype), torchs(*inputs, dtype=torch.float64)
    assert out.dtype == torch.float64
    if dtype == torch.float64:
        torch.testing.assert_close(out, truth)
    else:
        allowed = (torchs(*inputs, dtype=dtype) - truth).abs().max()
        assert (out - truth).abs().max() <= FORWARD_FACTOR * allowed


def with_grads(fn, cotangent, inputs):
    leaves = [x.detach().requires_grad_() if i in GRADS else x for i, x in enumerate(inputs)]
    out = fn(*leaves)
    return out, *torch.autograd.grad(out, [leaves[i] for i in GRADS], cotangent)


def test_is_the_convolution_of_normalized_images(device):
    images, weight, bias, keep, pos, prefix, mean, std = sample(device, torch.float64, **DEFAULT)
    pixels = (images.double() / 255 - mean[:, None, None]) / std[:, None, None]
    tokens = torch.nn.functional.conv2d(pixels, weight, bias, stride=16).flatten(2).mT + pos
    got = embed_visible(images, weight, bias, keep, pos, prefix=prefix, mean=mean, std=std)
    for b in range(3):
        assert torch.equal(got[b, :1], prefix)
        torch.testing.assert_close(got[b, 1:], tokens[b, keep[b]])


@pytest.mark.parametrize("statistics", ["both", "mean", "std", "none"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("images", IMAGES, ids=str)
def test_patches_are_the_same_bits_on_every_device(device, images, dtype, statistics):
    normal = torch.promote_types(dtype, torch.float32)
    images, _, _, keep, _, _, mean, std = sample(device, normal, images, **DEFAULT | {"p": 14, "H": 56, "W": 42})
    mean = mean if statistics in ("both", "mean") else None
    std = std if statistics in ("both", "std") else None
    got = torch.ops.bimkern.visible_patches(images, keep, mean, std, 14, dtype).cpu()
    full = 255 if images.dtype == torch.uint8 else 1
    offset, width = (
        torch.zeros(3, dtype=normal) if mean is None else full * mean.cpu(),
        torch.full((3,), full).to(normal),
    )
    scale = 1 / (width if std is None else width * std.cpu())
    pixels = (images.cpu().to(normal) - offset[:, None, None]) * scale[:, None, None]
    for b in range(3):
        for k, n in enumerate(keep[b].tolist()):
            y, x = n // 3 * 14, n % 3 * 14
            assert torch.equal(got[b, k], pixels[b, :, y : y + 14, x : x + 14].flatten().to(dtype))


@pytest.mark.parametrize("images", IMAGES, ids=str)
def test_normalizes_as_exactly_as_torch(device, images):
    def cut(images, mean, std):
        return torch.ops.bimkern.visible_patches(images, keep, mean, std, 8, mean.dtype)

    def divide(images, mean, std):
        pixels = images.to(mean.dtype) / (255 if images.dtype == torch.uint8 else 1)
        return ((pixels - mean[:, None, None]) / std[:, None, None]).flatten(1).unsqueeze(1)

    keep = torch.zeros(16, 1, dtype=torch.int64, device=device)
    mean, std = torch.rand(3, device=device), 0.2 + torch.rand(3, device=device)
    assert_no_worse_than_torch(cut, divide, (draw_images(device, images, 16, 3, 8, 8), mean, std))


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def window(x):
    return torch.nn.functional.pad(x, (3, 5, 2, 1))[..., 2:-1, 3:-5]


def every_other_pixel(x):
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def shifted_by_one(x):
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x)


def transposed(x):
    return x.mT.contiguous().mT


def one_image(x):
    return x[:1].expand_as(x)


@pytest.mark.parametrize("p", [14, 16])
@pytest.mark.parametrize("images", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize(
    "view", [channels_last, window, every_other_pixel, shifted_by_one, transposed, one_image], ids=lambda f: f.__name__
)
def test_reads_images_of_any_strides(device, view, images, p):
    images, *rest = sample(device, images=images, **DEFAULT | {"p": p, "H": 4 * p, "W": 3 * p})
    strided = view(images)
    cotangent = torch.randn(3, 6, 32, device=device)
    got = with_grads(ours, cotangent, (strided, *rest))
    want = with_grads(ours, cotangent, (strided.contiguous(), *rest))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_reads_everything_else_of_any_strides(device):
    def strided(x):
        return x.repeat_interleave(2, dim=-1)[..., ::2]

    def ours_of_strides(images, *rest):
        return ours(images, *map(strided, rest)).mT  # so that the gradient comes transposed

    inputs = sample(device, **DEFAULT)
    assert_no_worse_than_torch(ours_of_strides, lambda *inputs: torchs(*inputs).mT, inputs, GRADS)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradient_of_float_images(device, dtype):
    inputs = sample(device, images=torch.float32, **DEFAULT)
    assert_no_worse_than_torch(in_dtype(ours, dtype), in_dtype(torchs, dtype), inputs, (0, *GRADS))


def test_gradient_of_images_keeps_their_dtype(device):
    images, *rest = sample(device, images=torch.bfloat16, **DEFAULT)
    images.requires_grad_()
    ours(images, *rest).sum().backward()
    assert images.grad.dtype == torch.bfloat16
    seen = torch.zeros(3, 12, device=device).scatter_(1, rest[2], 1).view(3, 1, 4, 3)
    assert torch.equal(images.grad.ne(0).any(1, keepdim=True), seen.kron(torch.ones(1, 1, 16, 16, device=device)) > 0)


def test_gradcheck(device):
    dims = {"B": 2, "C": 2, "H": 6, "W": 4, "p": 2, "R": 2, "K": 3, "D": 3}
    inputs = sample(device, torch.float64, torch.float64, **dims)
    inputs = [x.requires_grad_() if i in (0, *GRADS) else x for i, x in enumerate(inputs)]
    assert gradcheck(ours, inputs)
    assert gradgradcheck(lambda *inputs: ours(*inputs).square(), inputs)


def test_weights_and_images_share_a_second_gradient(device):
    dims = {"B": 2, "C": 2, "H": 6, "W": 4, "p": 2, "R": 2, "K": 3, "D": 3}
    inputs = sample(device, torch.float64, torch.float64, **dims)
    images, weight = inputs[0].requires_grad_(), inputs[1].requires_grad_()

    def mixed(fn, first, second):  # linear in each of them: only what goes through the cut patches is left
        (grad,) = torch.autograd.grad(fn(*inputs).sum(), first, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), second)[0]

    torch.testing.assert_close(mixed(ours, weight, images), mixed(torchs, weight, images))
    torch.testing.assert_close(mixed(ours, images, weight), mixed(torchs, images, weight))


@pytest.mark.parametrize("fn", [ours, torchs], ids=["ours", "torchs"])
def test_autocast_leaves_the_product_alone(device, fn):
    inputs = sample(device, images=torch.float32, **DEFAULT)
    inputs[0].requires_grad_()
    want = fn(*inputs)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(fn(*inputs), want)


def test_autocast_leaves_the_gradients_alone(device):
    inputs = sample(device, images=torch.float32, **DEFAULT)
    leaves = [inputs[0].requires_grad_(), inputs[1].requires_grad_()]
    want = torch.autograd.grad(ours(*inputs).square().sum(), leaves)
    out = ours(*inputs).square().sum()
    with torch.autocast(device.type, torch.bfloat16):
        got = torch.autograd.grad(out, leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_compiles_under_autocast(device, monkeypatch, backend):
    monkeypatch.setenv("BIMKERN_BACKEND", backend)
    inputs = sample(device, **DEFAULT)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.autocast(device.type, torch.bfloat16):
        assert_no_worse_than_torch(compiled, torchs, inputs)  # rounding to bfloat16 is 1000 times as far off


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_must_not_require_a_gradient(monkeypatch, backend, name):
    monkeypatch.setenv("BIMKERN_BACKEND", backend)
    arguments = {"images": torch.zeros(2, 3, 8, 8), "weight": torch.zeros(5, 3, 4, 4), "bias": torch.zeros(5)}
    arguments |= {"keep": torch.tensor([[0, 1], [2, 3]]), name: torch.ones(3, requires_grad=True)}
    with pytest.raises(ValueError, match=f"^embed_visible: {name} must not require a gradient, got requires_grad=True"):
        embed_visible(**arguments)


def test_gradients_repeat_bit_for_bit(device):
    inputs = sample(device, **DEFAULT | {"B": 64, "K": 9})
    cotangent = torch.randn(64, 10, 32, device=device)
    first = with_grads(ours, cotangent, inputs)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, with_grads(ours, cotangent, inputs), strict=True))


@pytest.mark.parametrize("wanted", GRADS)
def test_asks_for_no_unneeded_gradient(device, wanted):
    inputs = sample(device, **DEFAULT)
    cotangent = torch.randn(3, 6, 32, device=device)
    everything = with_grads(ours, cotangent, inputs)
    inputs[wanted].requires_grad_()
    ours(*inputs).backward(cotangent)
    assert torch.equal(inputs[wanted].grad, everything[1 + GRADS.index(wanted)])
    assert all(x.grad is None for i, x in enumerate(inputs) if i != wanted)


def test_keeps_nothing_for_backward_but_its_inputs(device):
    inputs = sample(device, **DEFAULT)
    inputs[1].requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        ours(*inputs, dtype=torch.bfloat16)
    assert {x.data_ptr() for x in kept} <= {x.data_ptr() for x in inputs}


def test_backward_refuses_images_that_changed(device):
    inputs = sample(device, **DEFAULT)
    inputs[1].requires_grad_()
    out = ours(*inputs)
    inputs[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(device, dtype, optional):
    images, weight, bias, keep, *options = sample(device, **DEFAULT)
    arguments = [images, weight.requires_grad_(), bias.requires_grad_(), keep, *(options if optional else [None] * 4)]
    torch.library.opcheck(torch.ops.bimkern.embed_visible, (*arguments, dtype))


def test_opcheck_of_the_patches(device):
    images, _, _, keep, _, _, mean, std = sample(device, **DEFAULT)
    torch.library.opcheck(torch.ops.bimkern.visible_patches, (images, keep, mean, std, 16, torch.bfloat16))
    floats = torch.rand(images.shape, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.bimkern.visible_patches, (floats, keep, mean, std, 16, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_break(device, dynamic, dtype):
    compiled = torch.compile(in_dtype(ours, dtype), fullgraph=True, dynamic=dynamic)
    for K in (5, 7):
        assert_no_worse_than_torch(compiled, in_dtype(torchs, dtype), sample(device, **DEFAULT | {"K": K}), GRADS)

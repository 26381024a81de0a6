import pytest
import torch
from tolerance import assert_no_worse_than_torch
from torch.autograd import gradcheck, gradgradcheck

from bimkern.ops import masked_loss, masked_pixel_loss, pixel_targets
from bimkern.ops._check import FLOATS
from bimkern.ops.masked_loss import KINDS
from bimkern.ops.masked_pixel_loss import masked_pixel_loss_reference
from bimkern.ops.pixel_targets import PIXELS

DEFAULT = {"B": 3, "C": 3, "H": 32, "W": 48, "p": 8}
CASES = [
    DEFAULT,
    *(DEFAULT | odd for odd in ({"B": 0}, {"B": 1}, {"C": 1}, {"C": 5}, {"H": 0}, {"p": 16}, {"p": 2}, {"p": 1})),
    DEFAULT | {"p": 14, "H": 28, "W": 98},
    DEFAULT | {"p": 32, "H": 64, "W": 96},
]


def sample(device, dtype=torch.float32, images=torch.uint8, weights=torch.float32, *, B, C, H, W, p):
    """Return pred, images, weight, mean, std and the patch size."""
    N = (H // p) * (W // p)
    pixels = torch.randint(0, 256, (B, C, H, W), device=device)
    weight = torch.randint(0, 5, (B, N), device=device) / 4
    weight[:, ::3] = 1
    pred = torch.randn(B, N, C * p * p, device=device).to(dtype)
    images = pixels.to(images) if images == torch.uint8 else (pixels / 255).to(images)
    mean = torch.randint(0, 256, (C,), device=device) / 256  # times 255 exact, or one pixel decides by luck
    std = 0.2 + torch.rand(C, device=device)
    return pred, images, weight.to(weights), mean.to(weights), std.to(weights), p


def ours(pred, images, weight, mean, std, patch, normalize=True, kind="l2"):
    return masked_pixel_loss(pred, images, weight, kind, patch=patch, normalize=normalize, mean=mean, std=std)


def torchs(pred, images, weight, mean, std, patch, normalize=True, kind="l2"):
    return masked_pixel_loss_reference(pred, images, weight, weight.sum(), mean, std, patch, normalize, kind == "l1")


def with_grad(fn, pred, *rest):
    leaf = pred.detach().requires_grad_()
    loss = fn(leaf, *rest)
    return loss, *torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", CASES, ids=str)
def test_equals_reference(device, dims, kind, normalize):
    if normalize and dims["C"] * dims["p"] ** 2 < 2:
        pytest.skip("a single value has no variance")
    inputs = sample(device, **dims)
    if kind == "l1":
        inputs = (inputs[0].abs() + 9, *inputs[1:])  # no target is near, or a sign would be decided by its rounding
    assert_no_worse_than_torch(ours, torchs, (*inputs, normalize, kind), grads=(0,))


@pytest.mark.parametrize("images", PIXELS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.float64], ids=str)
def test_equals_reference_in_every_dtype(device, weights, dtype, images):
    weights = torch.float64 if images == torch.float64 else weights
    inputs = sample(device, dtype, images, weights, **DEFAULT)
    if weights == torch.float64:  # the reference is the truth itself
        torch.testing.assert_close(with_grad(ours, *inputs), with_grad(torchs, *inputs))
    else:
        assert_no_worse_than_torch(ours, torchs, inputs, grads=(0,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", PIXELS, ids=str)
def test_is_masked_loss_of_the_targets_to_the_bit(device, images, kind):
    weights = torch.float64 if images == torch.float64 else torch.float32
    pred, images, weight, mean, std, patch = sample(device, images=images, weights=weights, **DEFAULT)

    def patchified(pred):
        return masked_loss(pred, pixel_targets(images, patch, mean=mean, std=std), weight, kind)

    got = with_grad(lambda pred: ours(pred, images, weight, mean, std, patch, True, kind), pred)
    assert all(torch.equal(a, b) for a, b in zip(got, with_grad(patchified, pred), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(device, kind):
    inputs = sample(device, torch.float64, weights=torch.float64, B=2, C=2, H=4, W=6, p=2)
    pred, *rest = inputs

    def loss(pred):
        return ours(pred, *rest, True, kind)

    assert gradcheck(loss, (pred.requires_grad_(),))
    assert gradgradcheck(lambda pred: loss(pred).square(), (pred,))


@pytest.mark.parametrize("fn", [ours, torchs], ids=["ours", "torchs"])
def test_patches_of_weight_zero_are_not_read(device, fn):
    pred, images, weight, *rest = sample(device, images=torch.float32, **DEFAULT)
    spoiled = images.clone()
    masked = (weight == 0).view(3, 1, 4, 6).kron(torch.ones(1, 1, 8, 8, device=device)).bool()
    spoiled[masked.expand_as(images)] = torch.nan
    spoiled_pred = pred.masked_fill((weight == 0)[..., None], torch.nan)
    want = with_grad(fn, pred, images, weight, *rest)
    got = with_grad(fn, spoiled_pred, spoiled, weight, *rest)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not got[1][weight == 0].any()


def test_all_zero_weight_gives_zero_and_zero_gradients(device):
    pred, images, weight, *rest = sample(device, **DEFAULT)
    loss, grad = with_grad(ours, pred, images, torch.zeros_like(weight), *rest)
    assert loss == 0
    assert not grad.any()


def test_parts_with_the_whole_denominator_add_up(device):
    pred, images, weight, mean, std, patch = sample(device, weights=torch.float64, **DEFAULT)
    options = {"patch": patch, "mean": mean, "std": std}
    parts = [
        masked_pixel_loss(pred[i:][:1], images[i:][:1], weight[i:][:1], denominator=weight.sum(), **options)
        for i in range(3)
    ]
    torch.testing.assert_close(sum(parts), masked_pixel_loss(pred, images, weight, **options))


def test_same_bits_for_any_number_of_threads():
    inputs = sample("cpu", B=8, C=3, H=224, W=224, p=16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(with_grad(ours, *inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_reads_any_strides(device):
    pred, images, weight, mean, std, patch = sample(device, **DEFAULT)
    want = with_grad(ours, pred, images, weight, mean, std, patch)
    strided = [
        images.contiguous(memory_format=torch.channels_last),
        torch.nn.functional.pad(images, (3, 5, 2, 1))[..., 2:-1, 3:-5],
    ]
    for view in strided:
        args = pred.mT.contiguous().mT, view, weight.T.contiguous().T, mean.repeat_interleave(2)[::2], std, patch
        assert all(torch.equal(a, b) for a, b in zip(with_grad(ours, *args), want, strict=True))


def test_images_are_constants(device):
    pred, images, *rest = sample(device, images=torch.float32, **DEFAULT)
    assert not ours(pred, images.requires_grad_(), *rest).requires_grad


@pytest.mark.parametrize("images", [torch.uint8, torch.float32], ids=str)
def test_opcheck(device, images):
    pred, images, weight, mean, std, patch = sample(device, images=images, **DEFAULT)
    args = (pred.requires_grad_(), images, weight, weight.sum(), mean, std, patch, True, False)
    torch.library.opcheck(torch.ops.bimkern.masked_pixel_loss, args)
    grad = torch.tensor(2.0, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.bimkern.masked_pixel_loss_bwd, (grad, *args))


def test_compiles_whole(device):
    pred, *rest = sample(device, **DEFAULT)
    compiled = torch.compile(ours, fullgraph=True)
    got, want = with_grad(compiled, pred, *rest), with_grad(ours, pred, *rest)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pred": torch.zeros(2, 3, 48)}, ValueError, "pred must be [B=2, N=4, P=48], got [2, 3, 48]"),
        ({"weight": torch.zeros(2, 3)}, ValueError, "weight must be [B=2, N=4], got [2, 3]"),
        (
            {"images": torch.zeros(2, 3, 8, 6)},
            ValueError,
            "images must be [B, C, H, W] with H and W multiples of patch=4, got [2, 3, 8, 6]",
        ),
        (
            {"images": torch.zeros(2, 0, 8, 8), "pred": torch.zeros(2, 4, 0), "normalize": False},
            ValueError,
            "images must have at least one channel, got [2, 0, 8, 8]",
        ),
        (
            {"images": torch.zeros(2, 1, 2, 2), "pred": torch.zeros(2, 4, 1), "patch": 1},
            ValueError,
            "normalize needs patches of at least 2 values, got patch=1, C=1",
        ),
        ({"mean": torch.zeros(1)}, ValueError, "mean must be [C=3], got [1]"),
        ({"std": torch.zeros(3).double()}, TypeError, "std must be float32, got float64"),
        (
            {"pred": torch.zeros(2, 4, 48).int()},
            TypeError,
            "pred must be float32, float16, bfloat16 or float64, got int32",
        ),
        (
            {"weight": torch.zeros(2, 4).int()},
            TypeError,
            "weight must be bool, float32, float16, bfloat16 or float64, got int32",
        ),
        ({"images": torch.zeros(2, 3, 8, 8, device="meta")}, ValueError, "images must be on cpu like pred, got meta"),
        (
            {"weight": torch.zeros(2, 4, requires_grad=True)},
            ValueError,
            "weight must not require a gradient, got requires_grad=True",
        ),
        ({"kind": "huber"}, ValueError, "kind must be one of l2, l1, got 'huber'"),
        ({"denominator": -2}, ValueError, "denominator must be at least 0, got -2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_says_what_is_wrong(change, error, message):
    arguments = {"pred": torch.zeros(2, 4, 48), "images": torch.zeros(2, 3, 8, 8), "weight": torch.zeros(2, 4)}
    with pytest.raises(error) as raised:
        masked_pixel_loss(**arguments | {"patch": 4} | change)
    assert str(raised.value) == f"masked_pixel_loss: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": torch.zeros(2, 4, 47)}, r"pred must be \[B, N, P\], a row for every patch of the images"),
        ({"images": torch.zeros(2, 3, 8, 12)}, "a row for every patch of the images"),
        ({"images": torch.zeros(2, 3, 8, 6)}, "H and W multiples of patch=4"),
        ({"weight": torch.zeros(2, 3)}, r"pred must be \[B, N, P\] and weight \[B, N\]"),
        ({"mean": torch.zeros(2)}, r"mean and std must be \[C\]"),
        ({"denominator": torch.ones(2)}, "denominator must be a scalar of the dtype of weight"),
        ({"grad": torch.ones(2)}, "grad must be a scalar of the dtype of weight"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_bare_ops_read_nothing_out_of_bounds(change, message):
    arguments = {"pred": torch.zeros(2, 4, 48), "images": torch.zeros(2, 3, 8, 8), "weight": torch.zeros(2, 4)}
    arguments |= {"denominator": torch.ones(()), "mean": None, "std": None, "patch": 4, "normalize": True}
    arguments |= {"absolute": False} | change
    grad = arguments.pop("grad", torch.ones(()))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.masked_pixel_loss_bwd(grad, **arguments)
    if "grad" not in change:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.bimkern.masked_pixel_loss(**arguments)

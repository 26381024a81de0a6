import pytest
import torch
from tolerance import assert_no_worse_than_torch

from bimkern.ops import pixel_targets
from bimkern.ops._check import FLOATS
from bimkern.ops.pixel_targets import PIXELS, pixel_targets_reference

DEFAULT = {"B": 3, "C": 3, "H": 32, "W": 48, "p": 16}
CASES = [
    DEFAULT,
    *(DEFAULT | odd for odd in ({"B": 0}, {"B": 1}, {"C": 1}, {"C": 2}, {"C": 5}, {"H": 0}, {"p": 2}, {"p": 8})),
    DEFAULT | {"p": 1, "H": 5, "W": 7},
    DEFAULT | {"p": 7, "H": 28, "W": 21},
    DEFAULT | {"p": 14, "H": 28, "W": 98},
    DEFAULT | {"p": 32, "H": 64, "W": 96},
]


def draw(device, dtype=torch.uint8, *, B, C, H, W, p):
    """Return images, mean, std and the patch size."""
    pixels = torch.randint(0, 256, (B, C, H, W), device=device)
    images = pixels.to(dtype) if dtype == torch.uint8 else (pixels / 255).to(dtype)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    mean = torch.randint(0, 256, (C,), device=device) / 256  # times 255 exact, or one pixel decides by luck
    std = 0.2 + torch.rand(C, device=device)
    return images, mean.to(statistics), std.to(statistics), p


def ours(images, mean, std, patch, normalize):
    return pixel_targets(images, patch, normalize, mean=mean, std=std)


def torchs(images, mean, std, patch, normalize):
    dtype = torch.float64 if torch.float64 in (images.dtype, mean.dtype) else torch.float32
    return pixel_targets_reference(images, mean, std, patch, normalize, dtype)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dims", CASES, ids=str)
def test_equals_reference(device, dims, normalize):
    if normalize and dims["C"] * dims["p"] ** 2 < 2:
        pytest.skip("a single value has no variance")
    assert_no_worse_than_torch(ours, torchs, (*draw(device, **dims), normalize))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", PIXELS, ids=str)
@pytest.mark.parametrize("p", [14, 16])
def test_equals_reference_in_every_dtype(device, p, dtype, normalize):
    inputs = (*draw(device, dtype, **DEFAULT | {"p": p, "H": 4 * p, "W": 3 * p}), normalize)
    if dtype == torch.float64:  # the reference is the truth itself
        torch.testing.assert_close(ours(*inputs), torchs(*inputs))
    else:
        assert_no_worse_than_torch(ours, torchs, inputs)


def test_patches_are_raster_ordered_with_channels_fastest(device):
    images = torch.arange(2 * 3 * 4 * 6, device=device).reshape(2, 3, 4, 6).float()
    vectors = pixel_targets(images, 2, normalize=False)
    assert vectors.shape == (2, 6, 12)
    for patch, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        cell = images[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(vectors[1, patch], cell.permute(1, 2, 0).flatten())


def test_normalized_patches_have_unbiased_variance(device):
    images = torch.randn(2, 3, 8, 8, device=device, dtype=torch.float64) * 5 + 3
    raw = pixel_targets(images, 4, normalize=False)
    mean = raw.mean(-1, keepdim=True)
    variance = (raw - mean).square().sum(-1, keepdim=True) / (48 - 1)
    torch.testing.assert_close(pixel_targets(images, 4), (raw - mean) / (variance + 1e-6).sqrt())


def test_the_spread_of_a_channel_matters_after_normalization(device):
    images, mean, std, patch = draw(device, **DEFAULT)
    normal = (images.double() / 255 - mean.double().view(-1, 1, 1)) / std.double().view(-1, 1, 1)
    got = pixel_targets(images, patch, mean=mean.double(), std=std.double())
    torch.testing.assert_close(got, pixel_targets(normal, patch))
    assert (got - pixel_targets(images, patch)).abs().max() > 0.01


@pytest.mark.parametrize("value", [0.1, -1.7, 1e4])
def test_a_constant_patch_is_exactly_zero(device, value):
    assert not pixel_targets(torch.full((1, 3, 16, 16), value, device=device), 16).any()


@pytest.mark.parametrize("p", [14, 16])
def test_a_constant_patch_of_bytes_is_exactly_zero(device, p):
    images = torch.full((1, 3, p, p), 77, dtype=torch.uint8, device=device)
    same = torch.full((3,), 0.3, device=device)
    assert not pixel_targets(images, p).any()
    assert not pixel_targets(images, p, mean=same, std=same).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_give_float32_targets(device, dtype):
    images = torch.randn(1, 3, 8, 8, device=device).to(dtype)
    assert torch.equal(pixel_targets(images, 4), pixel_targets(images.float(), 4))


@pytest.mark.parametrize("images", FLOATS, ids=str)
@pytest.mark.parametrize("mean", [None, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("std", [None, torch.float32, torch.float64], ids=str)
def test_float64_anywhere_gives_float64(device, images, mean, std):
    values = [None if dtype is None else torch.ones(3, device=device, dtype=dtype) for dtype in (mean, std)]
    got = pixel_targets(torch.rand(1, 3, 4, 4, device=device).to(images), 4, mean=values[0], std=values[1])
    assert got.dtype == (torch.float64 if torch.float64 in (images, mean, std) else torch.float32)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("p", [14, 16])
def test_reads_images_of_any_strides(device, p, dtype):
    images, mean, std, patch = draw(device, dtype, **DEFAULT | {"p": p, "H": 4 * p, "W": 3 * p})
    want = pixel_targets(images, patch, mean=mean, std=std)
    padded = torch.nn.functional.pad(images, (3, 5, 2, 1))
    views = [
        images.contiguous(memory_format=torch.channels_last),
        padded[..., 2:-1, 3:-5],
        images.repeat_interleave(2, dim=-1)[..., ::2],
        images.mT.contiguous().mT,
    ]
    for view in views:
        assert torch.equal(pixel_targets(view, patch, mean=mean, std=std), want)
    wide_mean, wide_std = (values.repeat_interleave(2)[::2] for values in (mean, std))
    assert torch.equal(pixel_targets(images, patch, mean=wide_mean, std=wide_std), want)


def test_a_target_is_a_constant(device):
    images = torch.rand(1, 3, 8, 8, device=device, requires_grad=True)
    mean = torch.zeros(3, device=device, requires_grad=True)
    assert not pixel_targets(images, 4, mean=mean).requires_grad


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64], ids=str)
def test_opcheck(device, dtype):
    images, mean, std, patch = draw(device, dtype, **DEFAULT)
    torch.library.opcheck(torch.ops.bimkern.pixel_targets, (images, mean, std, patch, True, mean.dtype))


def test_compiles_whole(device):
    images, mean, std, patch = draw(device, **DEFAULT)
    compiled = torch.compile(pixel_targets, fullgraph=True)
    want = pixel_targets(images, patch, mean=mean, std=std)
    assert torch.equal(compiled(images, patch, mean=mean, std=std), want)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"images": torch.zeros(1, 3, 8, 10)},
            ValueError,
            "images must be [B, C, H, W] with H and W multiples of patch=4, got [1, 3, 8, 10]",
        ),
        ({"patch": 0}, ValueError, "images must be [B, C, H, W] with H and W multiples of patch=0, got [1, 3, 8, 8]"),
        ({"images": torch.zeros(3, 8, 8)}, ValueError, "images must be [B, C, H, W], got [3, 8, 8]"),
        (
            {"images": torch.zeros(1, 1, 8, 8), "patch": 1},
            ValueError,
            "normalize needs patches of at least 2 values, got patch=1, C=1",
        ),
        (
            {"images": torch.zeros(1, 3, 8, 8).int()},
            TypeError,
            "images must be uint8, float32, float16, bfloat16 or float64, got int32",
        ),
        ({"mean": torch.zeros(1)}, ValueError, "mean must be [C=3], got [1]"),
        ({"std": torch.zeros(4)}, ValueError, "std must be [C=3], got [4]"),
        ({"mean": torch.zeros(3).half()}, TypeError, "mean must be float32 or float64, got float16"),
        ({"std": torch.zeros(3).half()}, TypeError, "std must be float32 or float64, got float16"),
        ({"std": torch.zeros(3, device="meta")}, ValueError, "std must be on cpu like images, got meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_says_what_is_wrong(change, error, message):
    with pytest.raises(error) as raised:
        pixel_targets(**{"images": torch.zeros(1, 3, 8, 8), "patch": 4} | change)
    assert str(raised.value) == f"pixel_targets: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 8, 8)}, "H and W multiples of patch=4"),
        ({"images": torch.zeros(1, 3, 8, 6)}, "H and W multiples of patch=4"),
        ({"images": torch.zeros(1, 3, 8, 8).int()}, "dtype must be float32"),
        ({"patch": 0}, "H and W multiples of patch=0"),
        ({"mean": torch.zeros(2)}, r"mean and std must be \[C\]"),
        ({"std": torch.zeros(3).double()}, r"mean and std must be \[C\], contiguous, of the type"),
        ({"std": torch.zeros(6)[::2]}, r"mean and std must be \[C\], contiguous"),
        ({"dtype": torch.bfloat16}, "dtype must be float32 or float64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_bare_op_reads_nothing_out_of_bounds(change, message):
    arguments = {"images": torch.zeros(1, 3, 8, 8), "mean": None, "std": None, "patch": 4, "normalize": True}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.pixel_targets(**arguments | {"dtype": torch.float32} | change)

import math

import pytest
import torch
from skimage import data
from tolerance import assert_no_worse_than_torch
from torch.nn.functional import pad

from bimkern.ops import hog
from bimkern.ops.hog import PIXELS, _bins, _gradients, hog_reference

CELLS = (4, 8, 16, 32)
DEFAULT = {"B": 2, "C": 3, "H": 64, "W": 96}


def whole_numbers(device, dtype, B, C, H, W):
    """Pixels whose gradients are exact in every dtype, with the many ties of a photograph."""
    return torch.randint(0, 256, (B, C, H, W), device=device).to(dtype)


def photographs(device):
    """uint8, [4, 3, 224, 288]."""
    pictures = [getattr(data, name)()[40:264, 40:328] for name in ("astronaut", "coffee", "cat", "rocket")]
    return torch.stack([torch.from_numpy(picture.copy()) for picture in pictures]).permute(0, 3, 1, 2).to(device)


def golden_image(device):
    """The synthetic image of which the golden values are, [1, 3, 32, 32]."""
    c, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (3, 32, 32)), indexing="ij")
    image = torch.sin(0.37 * x + 0.11 * y + 0.5 * c) + 0.5 * torch.cos(0.23 * y * (c + 1) - 0.19 * x)
    return (image + 0.05 * torch.sin(1.7 * x * (c + 1) + 2.3 * y)).float()[None].to(device)


def histograms(vectors, grid, bins):
    return vectors.unflatten(1, grid).unflatten(-1, (-1, bins))  # [B, h, w, C, bins]


def assert_equals_reference(images, cells, bins, **options):
    """Both in float64 terms; the truth has the bins of the same pixels, since whole numbers have no rounding."""
    flat = [value for pair in options.pop("bias", []) for value in pair]

    def ours(images):
        pairs = list(zip(flat[::2], flat[1::2], strict=True)) or None
        return hog(images, cells, bins, bias=pairs, **options)

    def torchs(images):
        truth = {"dtype": torch.float64} if images.dtype == torch.float64 else {}
        return tuple(hog_reference(images, cells, bins, bias=flat, **options | truth))

    assert_no_worse_than_torch(ours, torchs, (images,))


@pytest.mark.parametrize(
    ("ramp", "bin9", "bin18"),
    [
        ((1, 0), 4, 9), ((-1, 0), 4, 9), ((0, 1), 0, 0), ((0, -1), 0, 0),
        ((1, 1), 2, 4), ((1, -1), 6, 13), ((2, 1), 3, 6), ((1, 2), 1, 2),
    ],
)  # fmt: skip
def test_golden_ramps(device, ramp, bin9, bin18):
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    image = (ramp[0] * x + ramp[1] * y)[None, None].to(device)
    for bins, bin in ((9, bin9), (18, bin18)):
        inside = hog(image, 4, bins)[0, 4]
        assert torch.equal(inside.nonzero().flatten().cpu(), torch.tensor([bin]))
        assert inside[bin].item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("bins", "cell", "options", "position", "values"),
    [
        (9, 8, {}, (1, 1, 0), ".02732 .04921 .28005 .57404 .76066 .08559 .04433 .02732 .01526"),
        (9, 8, {}, (2, 1, 2), ".17558 .51188 .51926 .20755 .2662 .37363 .36632 .12342 .18589"),
        (9, 8, {"window": 16}, (1, 1, 0), ".03455 .0662 .32918 .61882 .69975 .09813 .05156 .03029 .01654"),
        (9, 4, {}, (5, 2, 0), "0 0 .13067 .86853 .47811 0 0 0 0"),
        (18, 8, {}, (1, 2, 1), ".0314 .15704 .1849 .56354 .56426 .27623 .29443 .25699 .16581 .12666 .08178 0"
                               " .07782 .1134 .05633 .00792 .03735 .03727"),
        (18, 4, {}, (3, 4, 1), ".148 0 .21782 .39871 .48142 0 .48208 .41451 .24757 0 .18999 0 .05812 .14032 .1177"
                               " .03734 0 0"),
    ],
)  # fmt: skip
def test_golden_vectors(device, bins, cell, options, position, values):
    vectors = hog(golden_image(device), cell, bins, **options)
    got = histograms(vectors, (32 // cell, 32 // cell), bins)[0][position]
    want = torch.tensor([float(value) for value in values.split()], device=device)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)  # the values are given to five digits


def test_golden_patch(device):
    got = hog(golden_image(device), 8, 9, patch=16)[0, 1, :8]
    want = torch.tensor([0.02823, 0.0906, 0.013, 0.14329, 0.06064, 0.15586, 0.06309, 0.1012], device=device)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_golden_bias(device):
    image = golden_image(device)
    plain, biased = (histograms(hog(image, 8, 18, bias=bias), (4, 4), 18).flatten(0, 3) for bias in (None, (0.2, -0.1)))
    # The value is of a program whose rounding moves the border's pixels, where gx or gy is zero, by up to half a turn.
    assert (plain * biased).sum(-1).mean().item() == pytest.approx(0.935, abs=0.006)


@pytest.mark.parametrize("bins", [1, 2, 7, 9, 18, 36])
def test_equals_reference_with_any_bins(device, bins):
    assert_equals_reference(whole_numbers(device, torch.float32, **DEFAULT), CELLS, bins)


@pytest.mark.parametrize(
    "dims",
    [{"B": 0}, {"C": 1}, {"C": 2}, {"C": 5}, {"H": 32, "W": 32}, {"H": 224, "W": 32}, {"B": 9, "H": 32}],
    ids=str,
)
def test_equals_reference_in_any_shape(device, dims):
    assert_equals_reference(whole_numbers(device, torch.float32, **DEFAULT | dims), CELLS, 18)


@pytest.mark.parametrize(
    ("height", "width", "cells"),
    [
        (2, 2, (1, 2)), (2, 3, (1,)), (35, 21, (7,)), (39, 65, (13,)), (30, 30, (5, 15, 3)), (84, 42, (6, 7, 14, 21)),
        (64, 64, (32,)), (64, 64, (64,)), (224, 224, (224,)), (224, 224, (7, 32)), (24, 24, (8, 8, 24, 12)),
    ],
    ids=str,
)  # fmt: skip
def test_equals_reference_with_any_cells(device, height, width, cells):
    assert_equals_reference(whole_numbers(device, torch.float32, B=2, C=3, H=height, W=width), cells, 9)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 16}, {"window": 8}, {"window": 1}, {"patch": 32}, {"patch": 32, "window": 32},
        {"bias": [(0.5, -3.25), (0.5, -3.25), (7.75, 0.125), (0, 0)]}, {"dtype": torch.bfloat16},
    ],
    ids=str,
)  # fmt: skip
def test_equals_reference_with_any_option(device, options):
    images = whole_numbers(device, torch.float32, **DEFAULT)
    if "dtype" in options:  # rounding to bfloat16 may fall either way where sums differ in their last bit
        for ours, wide in zip(hog(images, CELLS, 18, **options), hog(images, CELLS, 18), strict=True):
            assert torch.equal(ours, wide.bfloat16())
    else:
        assert_equals_reference(images, CELLS, 18, **options)


@pytest.mark.parametrize("scale", [1, 1e-3, 1e4])
@pytest.mark.parametrize("bins", [9, 18, 36])
def test_bins_of_real_numbers_are_those_of_the_reference(device, bins, scale):
    images = torch.randn(4, 3, 64, 96, device=device) * scale
    want = _bins(*_gradients(images), bins)
    got = histograms(hog(images, 1, bins), (64, 96), bins)  # a cell of one pixel has one entry, about 1
    assert torch.equal(got.permute(0, 3, 1, 2, 4).argmax(-1), want)
    assert ((got != 0).sum(-1) <= 1).all()


@pytest.mark.parametrize("bins", [4, 7, 9, 12, 18, 36])
def test_bins_are_those_of_the_arc_tangent(device, bins):
    """Every gradient that 8-bit pixels can have, a tie going to the bin that it opens."""
    gx, gy = torch.meshgrid(*2 * [torch.arange(-1020, 1021, device=device, dtype=torch.float64)], indexing="ij")
    angle = torch.atan2(gx, gy) / math.pi * bins
    angle = torch.where((angle - angle.round()).abs() < 1e-9, angle.round(), angle)
    want = angle.floor().long() % bins
    got = _bins(gx.float(), gy.float(), bins)
    assert torch.equal(got[(gx != 0) | (gy != 0)], want[(gx != 0) | (gy != 0)])


@pytest.mark.parametrize("bins", [9, 18])
def test_bytes_are_exact_on_photographs(device, bins):
    images = photographs(device)
    ours = hog(images, CELLS, bins)
    exact = hog_reference(images.double(), CELLS, bins, dtype=torch.float64)
    rounded = hog_reference(images / 255, CELLS, bins)
    for result, truth, pipeline in zip(ours, exact, rounded, strict=True):
        assert (result - truth).abs().max() < 1e-6
        assert ((pipeline - truth).abs() > 1e-3).double().mean() > 0.01  # what float pixels lose


def test_every_pixel_type_gives_the_same(device):
    images = whole_numbers(device, torch.uint8, **DEFAULT)
    want = hog(images, CELLS, 18)
    for dtype in PIXELS:
        got = hog(images.to(dtype), CELLS, 18)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("scale", [0.5, -2])
def test_does_not_depend_on_normalization(device, scale):
    images = photographs(device)
    for a, b in zip(hog(images, CELLS, 18), hog(images.float() * scale + 64, CELLS, 18), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_each_histogram_has_length_one_or_zero(device):
    images = photographs(device)
    images[1, 2, :, 100:] = 7
    for cell, vectors in zip(CELLS, hog(images, CELLS, 18), strict=True):
        grid = histograms(vectors, (224 // cell, 288 // cell), 18)
        lengths, flat = grid.norm(dim=-1), (grid == 0).all(-1)
        assert flat[1, :, -1, 2].all()
        torch.testing.assert_close(lengths, 1 - flat.float(), rtol=0, atol=1e-6)


def test_several_cell_sizes_equal_one_at_a_time(device):
    images = photographs(device)
    for cell, together in zip(CELLS, hog(images, CELLS, 18), strict=True):
        torch.testing.assert_close(together, hog(images, cell, 18), rtol=0, atol=1e-6)


def test_cells_come_back_in_the_order_asked_for(device):
    images = whole_numbers(device, torch.float32, **DEFAULT)
    for a, b in zip(hog(images, (32, 4, 8)), [hog(images, (4, 8, 32))[i] for i in (2, 0, 1)], strict=True):
        assert torch.equal(a, b)


def test_patch_layout(device):
    images = whole_numbers(device, torch.float32, **DEFAULT)
    cells = histograms(hog(images, 8, 9), (8, 12), 9)  # [B, 8, 12, C, 9]
    patches = hog(images, 8, 9, patch=32)
    for row, column, channel, bin in [(0, 0, 0, 0), (5, 7, 1, 3), (7, 11, 2, 8), (2, 1, 2, 0)]:
        index = (channel * 9 + bin) * 16 + row % 4 * 4 + column % 4
        got = patches[:, row // 4 * 3 + column // 4, index]
        assert torch.equal(got, cells[:, row, column, channel, bin])


def test_a_border_has_no_gradient_across_it(device):
    images = torch.randn(2, 3, 16, 16, device=device)
    grid = histograms(hog(images, 1, 18), (16, 16), 18)
    assert (grid[:, (0, -1), 1:-1, :, 9] != 0).all()  # gy = 0
    assert (grid[:, 1:-1, (0, -1), :, 0] != 0).all()  # gx = 0
    assert (grid[:, (0, 0, -1, -1), (0, -1, 0, -1)] == 0).all()


def test_nan_stays_in_the_cells_that_see_it(device):
    images = torch.randn(1, 2, 24, 24, device=device)
    images[0, 1, 12, 12] = torch.nan
    for ours, torchs in zip(hog(images, (4, 8), 9), hog_reference(images, (4, 8), 9), strict=True):
        grid = histograms(ours, (-1, int(math.sqrt(ours.shape[1]))), 9)
        assert torch.equal(ours.isnan(), torchs.isnan())
        assert grid[:, :, :, 1].isnan().any()
        assert not grid[:, :, :, 0].isnan().any()


def test_repeats_bit_for_bit_on_any_number_of_threads(device):
    images = torch.randn(5, 3, 96, 64, device=device)
    threads = torch.get_num_threads()
    first = hog(images, CELLS, 18)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(first, hog(images, CELLS, 18), strict=True))
    finally:
        torch.set_num_threads(threads)


VIEWS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other row": lambda x: x.repeat_interleave(2, dim=2)[:, :, ::2],
    "every other column": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "cropped": lambda x: pad(x, (3, 2, 1, 1))[:, :, 1:-1, 3:-2],
    "some channels": lambda x: torch.cat([x, x], dim=1)[:, 1 : 1 + x.shape[1]].roll(1, 1),
    "one image": lambda x: x[:1].expand_as(x),
    "one column": lambda x: x[..., :1].expand_as(x),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", PIXELS, ids=str)
def test_reads_any_strides(device, dtype, view):
    images = VIEWS[view](whole_numbers(device, dtype, **DEFAULT))
    for a, b in zip(hog(images, CELLS, 18), hog(images.contiguous(), CELLS, 18), strict=True):
        assert torch.equal(a, b)


def test_is_a_constant(device):
    images = torch.randn(1, 3, 16, 16, device=device, requires_grad=True)
    assert not hog(images, 8).requires_grad
    (out,) = torch.ops.bimkern.hog(images, [8], 9, window=None, bias=[], patch=None, dtype=torch.float32)
    assert not out.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"window": None, "bias": [], "patch": None, "dtype": torch.float32},
        {"window": 16, "bias": [0.1, 0.2, 0.3, 0.4], "patch": 16, "dtype": torch.bfloat16},
    ],
)
def test_opcheck(device, dtype, options):
    torch.library.opcheck(torch.ops.bimkern.hog, (whole_numbers(device, dtype, **DEFAULT), [4, 8], 9), options)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_break(device, dynamic):
    def targets(images):
        return hog(images, CELLS, 18, bias=[(0.1, 0.2)] * 4), hog(images, 8, patch=16, window=16)

    compiled = torch.compile(targets, fullgraph=True, dynamic=dynamic)
    for B in (2, 3):
        images = torch.randn(B, 3, 64, 96, device=device)
        (got, one), (want, other) = compiled(images), targets(images)
        assert all(torch.equal(a, b) for a, b in zip((*got, one), (*want, other), strict=True))


FLOAT = torch.zeros(2, 3, 16, 24)
MULTIPLES = "images must be [B, C, H, W] with H and W multiples of {}, got [2, 3, 16, 24]"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(3, 16, 24)}, ValueError, "images must be [B, C, H, W], got [3, 16, 24]"),
        (
            {"images": FLOAT.double()},
            TypeError,
            "images must be float32, float16, bfloat16 or uint8, got float64",
        ),
        ({"cells": 5}, ValueError, MULTIPLES.format("cell=5")),
        ({"cells": (8, 16)}, ValueError, MULTIPLES.format("cell=16")),
        ({"cells": 0}, ValueError, MULTIPLES.format("cell=0")),
        ({"cells": ()}, ValueError, "cells must hold 1 to 8 sizes, got 0"),
        ({"cells": (8,) * 9}, ValueError, "cells must hold 1 to 8 sizes, got 9"),
        ({"images": torch.zeros(1, 1, 1, 4), "cells": 1}, ValueError,
         "images must have at least 2 x 2 pixels, got [1, 1, 1, 4]"),
        ({"bins": 0}, ValueError, "bins must be in [1, 36], got 0"),
        ({"bins": 37}, ValueError, "bins must be in [1, 36], got 37"),
        ({"window": 16}, ValueError, MULTIPLES.format("window=16")),
        ({"window": 0}, ValueError, MULTIPLES.format("window=0")),
        ({"images": torch.zeros(1, 1, 128, 128), "window": 128}, ValueError, "window must be at most 64, got 128"),
        ({"patch": 12}, ValueError, "patch must be a multiple of cell=8, got 12"),
        ({"patch": 0}, ValueError, "patch must be a multiple of cell=8, got 0"),
        ({"patch": 16}, ValueError, MULTIPLES.format("patch=16")),
        ({"dtype": torch.float16}, TypeError, "dtype must be float32 or bfloat16, got float16"),
        ({"cells": (4, 8), "bias": [(0.1, 0.2)]}, ValueError,
         "bias must be a pair (x, y) for each of 2 cell sizes, got [(0.1, 0.2)]"),
        ({"cells": (8,), "bias": (0.1, 0.2)}, ValueError,
         "bias must be a pair (x, y) for each of 1 cell sizes, got [0.1, 0.2]"),
        ({"bias": (0.1, 0.2, 0.3)}, ValueError,
         "bias must be a pair (x, y) for each of 1 cell sizes, got [(0.1, 0.2, 0.3)]"),
        ({"images": FLOAT.byte(), "bias": (0.1, 0.2)}, TypeError,
         "images must be normalized floats where bias is given, got uint8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_says_what_is_wrong(change, error, message):
    arguments = {"images": FLOAT, "cells": 8} | change
    with pytest.raises(error) as raised:
        hog(**arguments)
    assert str(raised.value) == f"hog: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(16, 24)}, r"images must be \[B, C, H, W\], got 2 dimensions"),
        ({"images": FLOAT.double()}, "images must not be float64"),
        ({"images": FLOAT.int()}, "dtype must be float32"),
        ({"images": torch.zeros(1, 1, 1, 8)}, "H and W must be at least 2, got 1 and 8"),
        ({"images": torch.zeros(1, 1, 1, 1).expand(1, 1, 8192, 8192)}, "at most 16777216 values an image"),
        ({"cells": []}, "expected 1 to 8 cell sizes, got 0"),
        ({"cells": [8] * 9}, "expected 1 to 8 cell sizes, got 9"),
        ({"cells": [5]}, "must be multiples of patch, and patch of cell, got patch=5 and cell=5"),
        ({"cells": [0]}, "got patch=0 and cell=0"),
        ({"bins": 37}, r"bins must be in \[1, 36\], got 37"),
        ({"bins": 0}, r"bins must be in \[1, 36\], got 0"),
        ({"window": 25}, r"window must be in \[0, min\(H, W, 64\)\], got 25"),
        ({"window": -1}, r"window must be in \[0, min\(H, W, 64\)\], got -1"),
        ({"bias": [1.0]}, "bias must hold two numbers per cell size"),
        ({"patch": 12}, "got patch=12 and cell=8"),
        ({"dtype": torch.float16}, "dtype must be float32 or bfloat16"),
    ],
)
def test_the_bare_op_reads_nothing_out_of_bounds(change, message):
    arguments = {"images": FLOAT, "cells": [8], "bins": 9}
    arguments |= {"window": None, "bias": [], "patch": None, "dtype": torch.float32} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bimkern.hog(**arguments)

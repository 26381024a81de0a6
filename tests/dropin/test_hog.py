"""HOG layers of other programs, patched: exact bins on any pixels, or their rounding bit for bit; and what stays."""

import copy
import pickle

import pytest
import torch
from torch import nn

from bench.hosts.hog import FlatHOGLayerC, HOGGenerator, HOGLayer, HOGLayerC
from bimkern import dropin
from bimkern.dropin import DropinError, patch

CASES = {
    "maskfeat": (lambda: HOGLayerC(pool=8), (2, 3, 32, 48)),
    "maskfeat, its own pool": (HOGLayerC, (2, 3, 28, 28)),
    "maskfeat, 18 bins": (lambda: HOGLayerC(18, 4), (2, 3, 32, 32)),
    "maskfeat, 8 bins": (lambda: HOGLayerC(8, 4), (2, 3, 32, 32)),
    "maskfeat, 12 bins, window": (lambda: HOGLayerC(12, 4, 16), (2, 3, 32, 32)),
    "maskfeat, a window that cells cross": (lambda: HOGLayerC(9, 6, 8), (2, 3, 48, 48)),
    "maskfeat, 5 channels": (lambda: HOGLayerC(9, 8, channels=5), (2, 5, 32, 32)),
    "fastmim": (FlatHOGLayerC, (2, 3, 32, 32)),
    "mmselfsup": (HOGGenerator, (1, 3, 224, 224)),
    "mmselfsup, no window, one cell a patch": (lambda: HOGGenerator(gaussian_window=0), (1, 3, 112, 112)),
    "localmim": (lambda: HOGLayer(9, 8), (2, 1, 32, 48)),
    "localmim, 18 bins": (lambda: HOGLayer(18, 16), (2, 1, 32, 32)),
    "localmim, bias": (lambda: HOGLayer(18, 4, bias=True), (2, 1, 32, 32)),
}


@pytest.fixture(params=CASES)
def case(request):
    make, shape = CASES[request.param]
    torch.manual_seed(0)
    return make(), torch.randint(256, shape)


def photograph(pixels):
    """Make smooth pixels / 255 of them, many neighbors equal: angles on boundaries, and rounding."""
    return (pixels // 64 * 64).float() / 255


def moved(got, expected):
    return ((got - expected).abs() > 1e-3).float().mean()


def test_equal_on_whole_numbers(case, device):
    layer, pixels = case
    rows = torch.arange(pixels.shape[2])[:, None]
    x = (pixels // 3 * 3 + rows % 3).float().to(device)  # never |gx| = |gy|, which atan2 rounds where 4 divides bins
    layer = layer.to(device)
    expected = layer(x)
    assert not patch(layer).left
    got = layer(x)
    assert (got.shape, got.dtype, got.requires_grad) == (expected.shape, torch.float32, False)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


def test_rounded_bit_for_bit(case):
    layer, pixels = case
    x = photograph(pixels)
    expected = layer(x)
    patch(layer, exact=False)
    assert torch.equal(layer(x), expected)


def test_divided_pixels_give_the_target_of_whole_numbers(case):
    layer, pixels = case
    if getattr(getattr(layer, "conv", None), "bias", None) is not None:
        pytest.skip("a bias ties the target to the scale of pixels")
    rounded = layer(photograph(pixels))
    patch(layer)
    exact = layer((pixels // 64).float())
    divided = layer((pixels // 64).float() / 4)  # by a power of two, which rounds nothing
    torch.testing.assert_close(divided, exact, rtol=0, atol=2e-6)
    assert moved(rounded, exact) > 0.02  # the published layer is off


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_keep_the_choice(exact, duplicate):
    layer = HOGLayerC(pool=8)
    patch(layer, exact=exact)
    other = duplicate(layer)
    x = photograph(torch.randint(256, (1, 3, 32, 32)))
    assert type(other) is type(layer)
    assert torch.equal(other(x), layer(x))


def test_other_options_than_before():
    layer = HOGLayerC(pool=8)
    patch(layer)
    with pytest.raises(DropinError, match=r"^patch: HOGLayerC is patched with exact=True already, got False: undo"):
        patch(layer, exact=False)


def test_it_is_said_what_changes():
    assert "boundary are exact, with exact=False rounded as by the host" in str(patch(HOGLayerC(pool=8)))


def test_undo_and_state(case):
    layer, pixels = case
    x, cls, state = photograph(pixels), type(layer), layer.state_dict()
    expected, before = layer(x), dict(vars(layer))
    patched = patch(layer)
    assert vars(layer) == before
    assert all(layer.state_dict()[name].data_ptr() == value.data_ptr() for name, value in state.items())
    assert list(layer.state_dict()) == list(state)
    patched.undo()
    assert type(layer) is cls
    assert torch.equal(layer(x), expected)


def test_autocast(case):
    layer, pixels = case
    x = pixels.float()
    patch(layer)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)  # the gradients stay float32


def test_what_the_generator_keeps_is_there():
    layer, x = HOGGenerator(), torch.randint(256, (1, 3, 224, 224)).float()
    layer(x)
    expected = layer.generate_hog_image(layer.out)
    patch(layer)
    layer.out = layer.h = layer.unfold_size = None
    layer(x)
    assert layer.unfold_size == 2
    torch.testing.assert_close(layer.generate_hog_image(layer.out), expected)


def test_what_the_generator_keeps_is_kept_by_undo_and_copies():
    layer, x = HOGGenerator(), 3 * torch.randint(8, (2, 3, 224, 224)).float()
    with pytest.raises(AttributeError, match="out"):
        layer.out  # noqa: B018  until the first call
    layer(x)
    expected = layer.out
    patched = patch(layer)
    layer(x)
    duplicate = pickle.loads(pickle.dumps(layer))
    patched.undo()
    for kept in (vars(layer)["out"], duplicate.out):
        assert kept.shape == expected.shape
    torch.testing.assert_close(duplicate.out, vars(layer)["out"], rtol=0, atol=0)


class Unsigned(HOGLayerC):
    def forward(self, x):
        return super().forward(x) ** 2


class OtherLayout(HOGLayerC):
    def forward(self, x):
        return super().forward(x).transpose(1, 2)


def other_kernel():
    layer = HOGLayerC(pool=8)
    layer.weight_x = torch.tensor([[3.0, 0, -3], [10, 0, -10], [3, 0, -3]]).expand(3, 1, 3, 3)
    return layer


def other_gaussian():
    layer = HOGLayerC(pool=8, gaussian_window=16)
    layer.gkern = layer.gkern**2
    return layer


def no_reflection():
    layer = HOGLayer(9, 8)
    layer.conv.padding_mode = "zeros"
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: Unsigned(pool=8),
        lambda: OtherLayout(pool=8),
        other_kernel,
        other_gaussian,
        lambda: FlatHOGLayerC(norm_pix_loss=False),
        no_reflection,
    ],
)
def test_a_layer_that_does_otherwise_stays(make):
    layer = make()
    cls = type(layer)
    with pytest.raises(DropinError, match=r"can be replaced: .*forward computes other results"):
        patch(layer)
    assert type(layer) is cls


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: HOGLayerC(37, 8), "nbins must be at most 36, got 37"),
        (lambda: HOGLayerC(9, 8, 72), "gaussian_window must be at most 64, got 72"),
        (lambda: HOGGenerator(37), "nbins must be at most 36, got 37"),
        (lambda: HOGLayer(40, 8), "nbins must be at most 36, got 40"),
    ],
)
def test_what_our_op_does_not_have_is_said(make, reason):
    layer = make()
    cls = type(layer)
    with pytest.raises(DropinError, match=reason):
        patch(layer)
    assert type(layer) is cls


@pytest.mark.parametrize("make", [other_kernel, other_gaussian, no_reflection])
def test_other_weights_are_used_where_the_rounding_is_repeated(make):
    layer = make()
    x = torch.rand(1, len(layer.weight_x) if hasattr(layer, "weight_x") else 1, 32, 32)
    expected = layer(x)
    patch(layer, exact=False)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("shape", [(1, 3, 36, 32), (1, 4, 32, 32), (3, 32, 32), (0, 3, 32, 32)])
def test_images_that_do_not_fit_are_the_hosts(shape):
    layer, x = HOGLayerC(pool=8), torch.rand(shape)

    def outcome():
        try:
            return layer(x)
        except RuntimeError as error:
            return str(error)

    expected = outcome()
    patch(layer)
    got = outcome()
    assert got == expected if isinstance(expected, str) else torch.equal(got, expected)


def test_a_loaded_bias_is_used():
    layer, other = HOGLayer(18, 4, bias=True), HOGLayer(18, 4, bias=True)
    x = torch.rand(1, 1, 32, 32)
    expected = other(x)
    patch(layer)
    layer(x)
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


def test_a_bias_changed_by_its_data_is_used():
    layer, other = HOGLayer(18, 4, bias=True), HOGLayer(18, 4, bias=True)
    x = torch.rand(1, 1, 32, 32)
    patch(layer)
    layer(x)
    layer.conv.bias.data.copy_(other.conv.bias)
    torch.testing.assert_close(layer(x), other(x), rtol=0, atol=1e-5)


def test_a_layer_made_in_inference_mode():
    with torch.inference_mode():
        layer = HOGLayer(18, 4, bias=True)
        expected = layer(torch.ones(1, 1, 32, 32))
    assert not patch(layer).left
    with torch.inference_mode():
        torch.testing.assert_close(layer(torch.ones(1, 1, 32, 32)), expected)


def test_a_layer_inside_a_model():
    model = nn.ModuleDict({"net": nn.Linear(2, 2), "hog": nn.ModuleList([HOGLayer(9, 4), HOGLayer(9, 8)])})
    assert set(patch(model).replaced) == {"hog.0.forward", "hog.1.forward"}


def test_hog_layer_rounds_if_asked():
    x = photograph(torch.randint(256, (2, 3, 32, 32)))
    for options in ({"pool": 8}, {"pool": 4, "nbins": 18, "gaussian_window": 16}):
        assert torch.equal(dropin.HOGLayer(**options, exact=False)(x), HOGLayerC(**options)(x))
        assert not dropin.HOGLayer(**options, exact=False).state_dict()

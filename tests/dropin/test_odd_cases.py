"""What patch() and the functions cannot take: one line says why, and the host stays as it was."""

import re

import pytest
import torch
from dropin_hosts import open_clip_dropout
from torch import nn

from bench.hosts.hog import HOGGenerator, HOGLayerC
from bench.hosts.localmim import LocalMaskedAutoencoderViT
from bench.hosts.mae import MaskedAutoencoderViT
from bimkern import dropin
from bimkern.dropin import lightly

TOKENS, IMAGES = torch.rand(2, 12, 8), torch.rand(2, 3, 16, 16)
IDS = torch.arange(4).expand(2, 4)
WIDE = torch.zeros(1, 1, 8)


def on_meta():
    with torch.device("meta"):
        return MaskedAutoencoderViT()


UNSUPPORTED = {
    "no structure": (lambda: nn.Linear(2, 2), "no known structure in Linear; looked for"),
    "complex": (
        lambda: MaskedAutoencoderViT().to(torch.complex64),
        "nothing in MaskedAutoencoderViT can be replaced: forward_encoder could not be tried: NotImplementedError",
    ),
    "float8": (
        lambda: MaskedAutoencoderViT().to(torch.float8_e4m3fn),
        "nothing in MaskedAutoencoderViT can be replaced: forward_encoder could not be tried: NotImplementedError",
    ),
    "meta": (on_meta, "model must be on cpu or cuda, where our kernels run, got meta"),
    "buffers on meta": (
        lambda: HOGLayerC().to("meta"),
        "model must be on cpu or cuda, where our kernels run, got meta",
    ),
    "bins": (
        lambda: HOGGenerator(nbins=40),
        "nothing in HOGGenerator can be replaced: forward could not be tried: ValueError: nbins must be at most 36",
    ),
    "window": (
        lambda: HOGGenerator(gaussian_window=128),
        "nothing in HOGGenerator can be replaced: forward could not be tried: ValueError: gaussian_window must be at",
    ),
}


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_model_that_cannot_be_patched_stays(case):
    make, text = UNSUPPORTED[case]
    model = make()
    before = [(type(module), dict(vars(module))) for module in model.modules()]
    with pytest.raises(dropin.DropinError, match=rf"^patch: {re.escape(text)}[^\n]*\Z"):
        dropin.patch(model)
    assert [(type(module), dict(vars(module))) for module in model.modules()] == before


class Normalized(nn.Module):
    """An embedding that keeps running statistics."""

    def __init__(self, embed):
        super().__init__()
        self.proj, self.img_size, self.patch_size = embed.proj, embed.img_size, embed.patch_size
        self.norm = nn.BatchNorm1d(self.proj.out_channels)

    def forward(self, x):
        return self.norm(self.proj(x).flatten(2)).mT


def test_trials_leave_statistics_and_call_no_hooks():
    model = MaskedAutoencoderViT()
    model.patch_embed = Normalized(model.patch_embed)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []

    def listen(*_):
        seen.append("called")

    model.patch_embed.register_forward_pre_hook(listen)
    model.norm.register_full_backward_pre_hook(listen)
    model.norm.register_forward_hook(listen)
    model.norm.weight.register_hook(listen)
    dropin.patch(model)
    assert not seen
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model(IMAGES.repeat(1, 1, 2, 2))[0].backward()
    assert len(seen) == 4  # they listen again
    assert not torch.equal(model.patch_embed.norm.running_mean, state["patch_embed.norm.running_mean"])


LEFT = {
    "values of a patch": (
        lambda: MaskedAutoencoderViT((4, 4), patch=1, channels=1),
        {"forward_loss": "normalize needs patches of at least 2 values, got patch=1, C=1"},
    ),
    "bins": (
        lambda: LocalMaskedAutoencoderViT(hog_nbins=40),
        dict.fromkeys(["HOG", *(f"hog_enc.{k}.forward" for k in range(4))], "nbins must be at most 36, got 40"),
    ),
}


@pytest.mark.filterwarnings("ignore:var:UserWarning")
@pytest.mark.parametrize("case", LEFT)
def test_what_our_op_cannot_serve_stays_and_the_rest_is_replaced(case):
    make, left = LEFT[case]
    patched = dropin.patch(make())
    assert patched.replaced
    assert patched.left.keys() == left.keys()
    for method, why in left.items():
        assert patched.left[method].endswith(why)


def test_any_number_of_heads_will_do():
    model = MaskedAutoencoderViT(width=21, heads=7, decoder_width=11, decoder_heads=11)
    torch.manual_seed(1)
    expected = model(IMAGES.repeat(1, 1, 2, 2))[0]
    assert not dropin.patch(model).left
    torch.manual_seed(1)
    torch.testing.assert_close(model(IMAGES.repeat(1, 1, 2, 2))[0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("x", [torch.randn(2, 7, 3, 4), torch.arange(14).view(2, 7, 1)], ids=["4 dims", "integers"])
def test_tokens_that_our_op_does_not_take_are_dropped_by_the_host(x):
    dropout = open_clip_dropout()[1]
    torch.manual_seed(1)
    expected = dropout(x)
    dropin.patch(dropout)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), expected)


def test_patch_dropout_out_of_training_takes_anything():
    x = torch.arange(6).view(1, 6, 1)
    assert dropin.PatchDropout().eval()(x) is x


FLOATS = "float32, float16, bfloat16 or float64"
WRONG = {
    "random_masking: mask_ratio must be in [0, 1], got 1.5": lambda: dropin.random_masking(TOKENS, 1.5),
    "random_masking: x must be tokens [B, N, D] or a map [B, D, h, w], got [12, 8]": (
        lambda: dropin.random_masking(TOKENS[0], 0.5)
    ),
    f"random_masking: x must be {FLOATS}, got int64": lambda: dropin.random_masking(TOKENS.long(), 0.5),
    "unshuffle: ids_restore must be int64, got int32": lambda: dropin.unshuffle(
        TOKENS, _ids(12).int(), WIDE, torch.zeros(1, 13, 8)
    ),
    "unshuffle: x must hold at most 1+N=9 tokens, got [2, 12, 8]": lambda: dropin.unshuffle(
        TOKENS, _ids(8), WIDE, torch.zeros(1, 9, 8)
    ),
    "unshuffle: pos_embed must be [1, 1+N=13, D=8], got [1, 12, 8]": lambda: dropin.unshuffle(
        TOKENS, _ids(12), WIDE, torch.zeros(1, 12, 8)
    ),
    f"patchify_loss: pred must be {FLOATS}, got complex64": lambda: _loss(pred=torch.zeros(2, 4, 192).cfloat()),
    "patchify_loss: pred must hold p*p*C=3 values per patch for a whole p, got [2, 4, 30]": (
        lambda: _loss(pred=torch.zeros(2, 4, 30))
    ),
    "patchify_loss: imgs must be cut into N=4 patches by p=8, got [2, 3, 16, 8]": lambda: _loss(IMAGES[..., :8]),
    "patchify_loss: imgs must be uint8, float32, float16, bfloat16 or float64, got int64": (
        lambda: _loss(IMAGES.long())
    ),
    "patchify_loss: pred must be [B=2, P=192, h=1, w=2], got [2, 192, 2, 1]": (
        lambda: _loss(IMAGES[:, :, :8], pred=torch.zeros(2, 192, 2, 1), mask=torch.ones(2, 2))
    ),
    "patchify_loss: mask must be [B=2, h=1, w=2], got [2, 2, 1]": (
        lambda: _loss(IMAGES[:, :, :8], pred=torch.zeros(2, 192, 1, 2), mask=torch.ones(2, 2, 1))
    ),
    "patchify_loss: mask must be [B=2, N=4], got [2, 1, 2, 2]": lambda: _loss(mask=torch.ones(2, 1, 2, 2)),
    f"patchify_loss: mask must be bool, {FLOATS}, got int64": lambda: _loss(mask=torch.ones(2, 4).long()),
    "apply_masks: masks must be int64, got int32": lambda: dropin.apply_masks(TOKENS, [IDS.int()]),
    "apply_masks: masks must be [B=2, K], got [1, 4]": lambda: dropin.apply_masks(TOKENS, [IDS[:1]], concat=False),
    "apply_masks: masks must hold at most N=3 ids per image, got K=4": lambda: dropin.apply_masks(TOKENS[:, :3], [IDS]),
    f"PatchDropout: x must be {FLOATS}, got int64": lambda: dropin.PatchDropout()(TOKENS.long()),
    "PatchDropout: x must be [B, R=1+N, D], got [12, 8]": lambda: dropin.PatchDropout()(TOKENS[0]),
    "HOGLayer: nbins must be at most 36 unless exact=False, got 40": lambda: dropin.HOGLayer(nbins=40),
    "HOGLayer: x must be [B, C, H, W], got [3, 16, 16]": lambda: dropin.HOGLayer()(IMAGES[0]),
    "HOGLayer: x must be floating with exact=False, got torch.uint8: divide by 255 first": (
        lambda: dropin.HOGLayer(pool=8, exact=False)(IMAGES.byte())
    ),
    "HOGLayer: x must have sides that gaussian_window=6 divides, got [2, 3, 16, 16]": (
        lambda: dropin.HOGLayer(pool=8, gaussian_window=6, exact=False)(IMAGES)
    ),
    "get_at_index: index must be int64, got int32": lambda: lightly.get_at_index(TOKENS, IDS.int()),
    "restore_at_index: value must be [B=2, K=4, D=8], got [2, 12, 8]": (
        lambda: lightly.restore_at_index(WIDE, (2, 12), IDS, TOKENS)
    ),
    "restore_at_index: index must be int64, got int32": (
        lambda: lightly.restore_at_index(WIDE, (2, 12), IDS.int(), TOKENS[:, :4])
    ),
    "patches_at_index: index must be int64, got int32": lambda: lightly.patches_at_index(IMAGES, 8, IDS.int()),
    "patch_mse_loss: pred must be [B=2, K=4, P=192], got [2, 12, 8]": (
        lambda: lightly.patch_mse_loss(TOKENS, IMAGES, 8, IDS)
    ),
}


def _ids(count):
    return torch.arange(count).expand(2, count)


def _loss(imgs=IMAGES, pred=None, mask=None):
    pred = torch.zeros(2, 4, 192) if pred is None else pred
    return dropin.patchify_loss(imgs, pred, torch.ones(2, 4) if mask is None else mask)


@pytest.mark.parametrize("text", WRONG)
def test_a_function_says_what_is_wrong(text):
    with pytest.raises((TypeError, ValueError), match=rf"^{re.escape(text)}\Z"):
        WRONG[text]()

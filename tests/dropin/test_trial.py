"""Trials notice a replacement that is wrong in one term, in small forms of a host as in the host itself."""

import pytest
import torch
from dropin_hosts import CASES
from torch import nn

from bench.hosts.hog import HOGLayer
from bench.hosts.mae import MaskedAutoencoderViT
from bimkern.dropin import DropinError, layers, patch, trial
from bimkern.dropin import lightly as lightly_functions
from bimkern.dropin.hosts import HOSTS, lightly_mae, localmim, masked_error, vit_pytorch


def scaled(original, *args, **options):
    return 1.001 * original(*args, **options)


def without_positions(original, visible, ids_restore, mask_token, pos, **options):
    return original(visible, ids_restore, mask_token, torch.zeros_like(pos), **options)


def frozen_mask_token(original, visible, ids_restore, mask_token, pos):
    return original(visible, ids_restore, mask_token.detach(), pos)


def class_token_forgotten(original, visible, ids_restore, mask_token, pos):
    return original(visible * (torch.arange(visible.shape[1]) > 0)[:, None], ids_restore, mask_token, pos)


def raw_pixels(original, images, pred, mask, patch, normalize):
    return original(images, pred, mask, patch, False)


def last_image_forgotten(original, images, pred, mask, patch, normalize):
    return original(images, pred, mask * torch.tensor([[1.0], [0.0]]), patch, normalize)


def without_bias(original, images, weight, bias, *args, **options):
    return original(images, weight, torch.zeros_like(bias), *args, **options)


def rows_for_columns(original, images, weight, *args, **options):
    return original(images, weight.mT, *args, **options)


def other_order(original, order):
    return original(order).flip(1)


def one_number_more(original, *args):
    torch.rand(1)
    return original(*args)


def mean_of_first(original, mask, scale):
    return original(mask, scale) if scale >= 1 else original(mask, scale).ceil()


def neighbors(original, tokens, keep, *args, **options):
    return original(tokens, keep.roll(1, 1), *args, **options)


MASKS = {"forward_encoder", "random_masking"}
FAULTS = [
    ("mae", layers, "restore", without_positions, {"forward_decoder"}),
    ("mae", layers, "restore", frozen_mask_token, {"forward_decoder"}),
    ("mae", layers, "restore", class_token_forgotten, {"forward_decoder"}),
    ("mae", layers, "pixel_loss", raw_pixels, {"forward_loss"}),
    ("mae", layers, "pixel_loss", scaled, {"forward_loss"}),
    ("mae", layers, "pixel_loss", last_image_forgotten, {"forward_loss"}),
    ("mae", layers, "embed_visible", without_bias, {"forward_encoder"}),
    ("mae", layers, "embed_visible", rows_for_columns, {"forward_encoder"}),
    ("mae", layers, "inverse", other_order, {*MASKS, "forward_decoder"}),
    ("mae", layers, "keep_to_mask", scaled, MASKS),
    ("mae", layers, "draw_masks", one_number_more, MASKS),
    ("mae", layers, "gather", neighbors, {"random_masking"}),
    ("hf", layers, "restore", without_positions, {"decoder.forward"}),
    ("hf", layers, "pixel_loss", raw_pixels, {"forward"}),
    ("hf", layers, "embed_visible", without_bias, {"vit.embeddings.forward"}),
    ("vit-pytorch mae", vit_pytorch, "_embed", scaled, {"forward"}),
    ("vit-pytorch mae", vit_pytorch, "_restore", without_positions, {"forward"}),
    ("vit-pytorch mae", vit_pytorch, "_mean_error", scaled, {"forward"}),
    ("vit-pytorch simmim", vit_pytorch, "_mean_error", scaled, {"forward"}),
    ("vit-pytorch simmim", layers, "gather", neighbors, {"forward"}),
    ("lightly", layers, "gather", neighbors, {"preprocess"}),
    ("lightly, torchvision", layers, "gather", neighbors, {"preprocess"}),
    ("localmim", layers, "restore", class_token_forgotten, {"forward"}),
    ("hf", layers, "restore", class_token_forgotten, {"decoder.forward"}),
    ("lightly mae", lightly_mae, "patches_at_index", scaled, {"forward"}),
    ("lightly mae", lightly_functions, "restore_tokens", without_positions, {"forward_decoder"}),
    ("timm", layers, "gather", neighbors, {"patch_drop.forward"}),
    ("localmim", localmim, "match_loss", scaled, {"forward"}),
    ("localmim", layers, "restore", frozen_mask_token, {"forward"}),
    ("localmim", layers, "embed_visible", without_bias, {"forward_encoder"}),
    ("localmim", localmim, "scale_mask", mean_of_first, {"forward_loss"}),
    ("localmim", localmim, "masked_loss", scaled, {"forward_loss"}),
    ("localmim", localmim, "hog", scaled, {"HOG"}),
    ("simmim", masked_error, "masked_pixel_loss", scaled, {"forward"}),
]


@pytest.mark.parametrize(
    ("host", "place", "name", "fault", "methods"),
    FAULTS,
    ids=[f"{host}-{name}-{fault.__name__}" for host, _, name, fault, _ in FAULTS],
)
def test_a_wrong_replacement_is_refused(host, place, name, fault, methods, monkeypatch):
    model = CASES[host].make()
    original = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *args, **options: fault(original, *args, **options))
    others = nn.ModuleList([model, HOGLayer(9, 8, False)])  # of which something can be replaced in any case
    assert {path.removeprefix("0.") for path in patch(others).left} == methods


class SidesInNumbers(MaskedAutoencoderViT):
    """A copy with the sides of its patches and images written in its code, and a width that it keeps."""

    def __init__(self):
        super().__init__()
        self.width = 16

    def patchify(self, imgs):
        return imgs.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(len(imgs), 16, 192)

    def forward_encoder(self, x, mask_ratio):
        assert x.shape == (len(x), 3, 32, 32)
        return super().forward_encoder(x, mask_ratio)

    def forward_decoder(self, x, ids_restore):
        return super().forward_decoder(x.view(-1, x.shape[1], self.width), ids_restore)


def test_a_copy_that_has_no_small_form_is_tried_as_it_is():
    assert not patch(SidesInNumbers()).left


def embedding_with(**changes):
    class Model(MaskedAutoencoderViT):
        def __init__(self):
            super().__init__()
            for name, value in changes.items():
                setattr(self.patch_embed, name, value)

    return Model()


@pytest.mark.parametrize(
    "changes", [{"patch_size": None}, {"patch_size": (8, 4)}, {"proj": nn.Conv2d(3, 16, 8, 8, 0, 1, 1, False)}]
)
def test_an_odd_embedding_has_no_small_form(changes):
    model = embedding_with(**changes)
    (form,) = trial.forms(HOSTS["MAE-style MaskedAutoencoderViT"], model)
    assert form is model


class DropsAlways(nn.Module):
    """A copy of timm's PatchDropout that drops tokens out of training, too."""

    prob, num_prefix_tokens, ordered = 0.5, 1, False

    def forward(self, x):
        B, N, D = x.shape
        keep = torch.randn(B, N - 1).argsort(dim=1)[:, : max(1, int((N - 1) * 0.5)), None]
        return torch.cat([x[:, :1], x[:, 1:].gather(1, keep.expand(-1, -1, D))], dim=1)


class DropsInTraining(DropsAlways):
    def forward(self, x):
        return super().forward(x) if self.training else x


def test_a_copy_that_does_the_same_out_of_training_is_told_from_one_that_does_not():
    assert patch(DropsInTraining()).replaced.keys() == {"forward"}
    with pytest.raises(DropinError, match=r"^patch: nothing in DropsAlways can be replaced: forward"):
        patch(DropsAlways())

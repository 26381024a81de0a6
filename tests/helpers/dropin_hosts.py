"""Small models of the host programs, each with a batch, for what holds for every host."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from interop import import_or_skip
from torch import nn
from torch.nn import functional as F

from bench.dropin.cases import masked
from bench.hosts.hog import HOGGenerator
from bench.hosts.lightly import MAE as LightlyMAE
from bench.hosts.localmim import LocalMaskedAutoencoderViT
from bench.hosts.mae import MaskedAutoencoderViT
from bench.hosts.simmim import MapEncoder, MaskedViT, MaskFeat, SimMIM


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    loss: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    exact: bool = False  # only copies tokens: every bit is the host's
    double: bool = True  # the host itself runs in float64
    draws: bool = True  # the masks are the model's own


def error_of(model, batch):
    """Return the error that a call ends with."""
    try:
        model(batch)
    except (AssertionError, RuntimeError, ValueError) as error:
        return error
    raise AssertionError("there is none")


def first(model, batch):
    return model(batch)[0]


def mean_square(model, batch):
    return model(batch).square().mean()


def hf_vitmae(**options):
    transformers = import_or_skip("transformers")
    encoder = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTMAEConfig(
        **encoder,
        **{f"decoder_{name}": value for name, value in encoder.items()},
        **{"image_size": 32, "patch_size": 8, "norm_pix_loss": True} | options,
    )
    return transformers.ViTMAEForPreTraining(config)


def vit_pytorch(method, pool, three_dimensions=False, **options):
    """Wrap a small ViT; its positions [T, D] suit no more than an MAE that pools, so others get [1, T, D]."""
    package = import_or_skip("vit_pytorch")
    module = import_or_skip(f"vit_pytorch.{method.lower()}")
    encoder = package.ViT(
        image_size=32, patch_size=8, num_classes=2, dim=16, depth=1, heads=2, mlp_dim=32, pool=pool, dim_head=8
    )
    if three_dimensions:
        encoder.pos_embedding = nn.Parameter(encoder.pos_embedding.detach()[None])
    return getattr(module, method)(encoder=encoder, masking_ratio=0.6, **options)


def timm_vit(**options):
    timm = import_or_skip("timm")
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=12, depth=1, num_classes=2, **options
    )


def lightly_vit(over):
    modules = import_or_skip("lightly.models.modules")
    if over == "timm":
        vit = timm_vit(num_heads=2)
        return modules.MaskedVisionTransformerTIMM(vit)
    torchvision = import_or_skip("torchvision.models")
    vit = torchvision.VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=2
    )
    return modules.MaskedVisionTransformerTorchvision(vit)


def lightly_encoding(model, batch):
    """Encode as lightly's MAE does, masks drawn by its own function."""
    utils = import_or_skip("lightly.models.utils")
    idx_keep, _ = utils.random_token_mask((len(batch), model.sequence_length), 0.7, device=batch.device)
    return model.encode(batch, idx_keep=idx_keep).square().mean()


def lightly_mae():
    import_or_skip("lightly.models.modules")
    return LightlyMAE(timm_vit(num_heads=2), 16, 1, 2, mask_ratio=0.7)


def open_clip_dropout(**options):
    transformer = import_or_skip("open_clip.transformer")
    return nn.Sequential(nn.Linear(8, 8), transformer.PatchDropout(0.6, **options), nn.Linear(8, 3))


IMAGES = (3, 3, 32, 32)
CASES = {
    "mae": Case(MaskedAutoencoderViT, IMAGES, first),
    "mae, 5 channels, a rectangle, raw pixels": Case(
        lambda: MaskedAutoencoderViT((24, 40), channels=5, norm_pix_loss=False), (3, 5, 24, 40), first
    ),
    "simmim": Case(lambda: SimMIM(MapEncoder(32, 8, 3, 16, 1, 2), 8), IMAGES, masked, draws=False),
    "simmim, 1 channel": Case(lambda: SimMIM(MapEncoder(32, 4, 1, 16, 1, 2), 4), (3, 1, 32, 32), masked, draws=False),
    "maskfeat": Case(
        lambda: MaskFeat(MaskedViT(56, 4, 3, 16, 1, 2), HOGGenerator(pool=2, gaussian_window=8)),
        (3, 3, 56, 56),
        masked,
        double=False,
        draws=False,
    ),
    "maskfeat, no window, absolute error": Case(
        lambda: MaskFeat(MaskedViT(28, 2, 3, 16, 1, 2), HOGGenerator(18, 2, 0), "L1"),
        (3, 3, 28, 28),
        masked,
        double=False,
        draws=False,
    ),
    "localmim": Case(LocalMaskedAutoencoderViT, IMAGES, lambda m, x: m(x), double=False),
    "localmim, HOG with a bias": Case(
        lambda: LocalMaskedAutoencoderViT(hog_nbins=18, hog_bias=True), IMAGES, lambda m, x: m(x), double=False
    ),
    "hf": Case(hf_vitmae, IMAGES, first),
    "hf, 1 channel, raw pixels": Case(lambda: hf_vitmae(num_channels=1, norm_pix_loss=False), (3, 1, 32, 32), first),
    "vit-pytorch mae": Case(
        lambda: vit_pytorch("MAE", "mean", decoder_dim=12), IMAGES, lambda m, x: m(x), double=False
    ),
    "vit-pytorch mae, class token": Case(
        lambda: vit_pytorch("MAE", "cls", True, decoder_dim=16), IMAGES, lambda m, x: m(x), double=False
    ),
    "vit-pytorch simmim": Case(lambda: vit_pytorch("SimMIM", "cls", True), IMAGES, lambda m, x: m(x)),
    "lightly": Case(lambda: lightly_vit("timm"), IMAGES, lightly_encoding, exact=True, draws=False),
    "lightly, torchvision": Case(lambda: lightly_vit("torchvision"), IMAGES, lightly_encoding, exact=True, draws=False),
    "lightly mae": Case(lightly_mae, IMAGES, lambda m, x: F.mse_loss(*m(x))),
    "timm": Case(lambda: timm_vit(patch_drop_rate=0.5), IMAGES, mean_square, exact=True),
    "timm, registers": Case(lambda: timm_vit(patch_drop_rate=0.25, reg_tokens=2), IMAGES, mean_square, exact=True),
    "open_clip": Case(open_clip_dropout, (3, 9, 8), mean_square, exact=True),
    "open_clip, no class token": Case(
        lambda: open_clip_dropout(exclude_first_token=False), (3, 9, 8), mean_square, exact=True
    ),
}

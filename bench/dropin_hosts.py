"""Host programs for `python -m bench dropin`, at their base size or tiny; packages are imported when asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bench.lightly_host import MAE as LightlyMAE
from bench.local_host import LocalMaskedAutoencoderViT
from bench.mae_host import MaskedAutoencoderViT
from bimkern import optional


@dataclass(frozen=True, kw_only=True)
class BenchHost:
    """How a host is made, and how its loss is computed from the model and images [B, 3, size, size]."""

    make: Callable[[bool], nn.Module]  # whether it is to be tiny
    loss: Callable[[nn.Module, Tensor], Tensor]

    @staticmethod
    def image_size(tiny: bool) -> int:
        """Return the side of its images."""
        return 32 if tiny else 224


def mae(tiny: bool) -> nn.Module:
    if tiny:
        return MaskedAutoencoderViT()
    decoder: dict[str, Any] = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
    return MaskedAutoencoderViT((224, 224), 16, width=768, depth=12, heads=12, **decoder)


def localmim(tiny: bool) -> nn.Module:
    if tiny:
        return LocalMaskedAutoencoderViT()
    decoder: dict[str, Any] = {"decoder_width": 256, "decoder_depth": 1, "decoder_heads": 8}
    return LocalMaskedAutoencoderViT(224, 16, width=768, depth=12, heads=12, **decoder)


def hf(tiny: bool) -> nn.Module:
    transformers = optional.load("transformers")
    small: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    sizes = small | {f"decoder_{name}": value for name, value in small.items()} | {"image_size": 32, "patch_size": 8}
    config = transformers.ViTMAEConfig(norm_pix_loss=True, **(sizes if tiny else {}))
    return transformers.ViTMAEForPreTraining(config)


def vit_pytorch_mae(tiny: bool) -> nn.Module:
    vit, package = optional.load("vit_pytorch.vit"), optional.load("vit_pytorch.mae")
    sizes: dict[str, Any] = {"image_size": 224, "patch_size": 16, "dim": 768, "depth": 12, "heads": 12, "mlp_dim": 3072}
    small: dict[str, Any] = {"image_size": 32, "patch_size": 8, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
    # Its MAE takes positions [N, D] of an encoder without a class token only.
    encoder = vit.ViT(num_classes=0, pool="mean", **(small if tiny else sizes))
    width, depth = (16, 1) if tiny else (512, 8)
    return package.MAE(encoder=encoder, decoder_dim=width, decoder_depth=depth)


def timm_patch_dropout(tiny: bool) -> nn.Module:
    timm = optional.load("timm")
    small: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model: nn.Module = timm.create_model("vit_base_patch16_224", patch_drop_rate=0.5, **(small if tiny else {}))
    return model


def lightly_mae(tiny: bool) -> nn.Module:
    timm = optional.load("timm")
    small: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    vit = timm.create_model("vit_base_patch16_224", num_classes=0, **(small if tiny else {}))
    width, depth, heads = (16, 1, 2) if tiny else (512, 8, 16)
    return LightlyMAE(vit, width, depth, heads)


HOSTS = {
    "mae": BenchHost(make=mae, loss=lambda model, images: model(images)[0]),
    "localmim": BenchHost(make=localmim, loss=lambda model, images: model(images)),
    "hf": BenchHost(make=hf, loss=lambda model, images: model(images).loss),
    "vit_pytorch": BenchHost(make=vit_pytorch_mae, loss=lambda model, images: model(images)),
    "lightly": BenchHost(make=lightly_mae, loss=lambda model, images: F.mse_loss(*model(images))),
    "timm": BenchHost(make=timm_patch_dropout, loss=lambda model, images: model(images).square().mean()),
}

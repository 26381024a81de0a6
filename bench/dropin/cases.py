"""Host programs for `python -m bench dropin`, at their base size or tiny; packages are imported when asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.hosts.hog import HOGGenerator
from bench.hosts.lightly import MAE as LightlyMAE
from bench.hosts.localmim import LocalMaskedAutoencoderViT
from bench.hosts.mae import MaskedAutoencoderViT
from bench.hosts.simmim import MapEncoder, MaskedViT, MaskFeat, SimMIM
from bimkern import optional


@dataclass(frozen=True, kw_only=True)
class BenchHost:
    """How a host is made, and how its loss is computed from the model and images [B, 3, size, size]."""

    make: Callable[[bool], nn.Module]  # whether it is to be tiny
    loss: Callable[[nn.Module, Tensor], Tensor]
    target: Callable[[nn.Module, Tensor], Tensor] | None = None  # is timed alone, too
    tiny_side: int = 32

    def image_size(self, tiny: bool) -> int:
        """Return the side of its images."""
        return self.tiny_side if tiny else 224


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


_VIT_B = {"side": 224, "patch": 16, "channels": 3, "width": 768, "depth": 12, "heads": 12}


def simmim(tiny: bool) -> nn.Module:
    small = {"side": 32, "patch": 8, "channels": 3, "width": 16, "depth": 1, "heads": 2}
    return SimMIM(MapEncoder(**(small if tiny else _VIT_B)), encoder_stride=8 if tiny else 16)


def maskfeat(tiny: bool) -> nn.Module:
    small = {"side": 56, "patch": 4, "channels": 3, "width": 16, "depth": 1, "heads": 2}
    generator = HOGGenerator(pool=2, gaussian_window=8) if tiny else HOGGenerator()
    return MaskFeat(MaskedViT(**(small if tiny else _VIT_B)), generator)


def masked(model: Any, images: Tensor) -> Tensor:
    """Return the loss of images [B, C, H, W] with six tenths of their patches masked."""
    p = (model.backbone if hasattr(model, "backbone") else model).patch_size
    B, _, H, W = images.shape
    loss: Tensor = model(images, (torch.rand(B, H // p, W // p, device=images.device) < 0.6).long())
    return loss


def hog_target(model: Any, images: Tensor) -> Tensor:
    target: Tensor = model.target_generator(images)
    return target


def lightly_mae(tiny: bool) -> nn.Module:
    timm = optional.load("timm")
    small: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    vit = timm.create_model("vit_base_patch16_224", num_classes=0, **(small if tiny else {}))
    width, depth, heads = (16, 1, 2) if tiny else (512, 8, 16)
    return LightlyMAE(vit, width, depth, heads)


HOSTS = {
    "mae": BenchHost(make=mae, loss=lambda model, images: model(images)[0]),
    "localmim": BenchHost(make=localmim, loss=lambda model, images: model(images)),
    "maskfeat": BenchHost(make=maskfeat, loss=masked, target=hog_target, tiny_side=56),
    "simmim": BenchHost(make=simmim, loss=masked),
    "hf": BenchHost(make=hf, loss=lambda model, images: model(images).loss),
    "vit_pytorch": BenchHost(make=vit_pytorch_mae, loss=lambda model, images: model(images)),
    "lightly": BenchHost(make=lightly_mae, loss=lambda model, images: F.mse_loss(*model(images))),
    "timm": BenchHost(make=timm_patch_dropout, loss=lambda model, images: model(images).square().mean()),
}

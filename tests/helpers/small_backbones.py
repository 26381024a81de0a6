"""Backbones of timm that are small enough for tests, one for every way in which timm builds and reads them."""

from bimkern.models.timm_backbone import TimmBackboneConfig


def _small(name, image_size=64, **model_args):
    return TimmBackboneConfig(name=name, image_size=image_size, model_args=model_args)


BACKBONES = {
    "convnext": _small("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)),
    "convnextv2": _small("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "pvt": _small("pvt_v2_b0", depths=(1, 1, 2, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4)),
    "twins": _small("twins_svt_small", depths=(1, 1, 2, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 4)),
    "swin": _small(
        "swin_tiny_patch4_window7_224", depths=(1, 1, 2, 1), embed_dim=8, num_heads=(1, 2, 2, 4), window_size=2
    ),
    "resnet": _small("resnet10t"),
    "vit": _small("vit_tiny_patch16_224", embed_dim=16, depth=3, num_heads=2),
    "efficientnet": _small("efficientnet_lite0"),
}

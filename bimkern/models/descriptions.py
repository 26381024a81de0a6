"""Descriptions: what other programs need to know about exported weights, in the terms of their own configs.

Without them a loader takes its defaults: timm's would resize images to 224 px and normalize them by 0.5.
"""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from bimkern.models.heads import DecoderConfig
from bimkern.models.layers import LAYER_NORM_EPS
from bimkern.models.vit import ViTConfig

# The cls token gets no loss of its own, so features are those of the patches, averaged after the last norm; all
# methods fine-tune from the patches' average.
POOLING = "avg"
_CROP = 224 / 256  # side of the central crop over the short side of the resized image; MAE's evaluation


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes an encoder's input: resized, cropped to a square, scaled to [0, 1], normalized."""

    image_size: int  # pixels a side
    interpolation: str  # bicubic or bilinear
    mean: tuple[float, ...]  # of every channel, likewise std
    std: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.image_size} px, {self.interpolation}, mean {self.mean}, std {self.std}"


def timm_config(encoder: ViTConfig, images: Preprocessing) -> dict[str, Any]:
    """Describe a backbone as timm does in the config.json of a model folder: what to build, what to feed it."""
    return {
        "architecture": "vit_base_patch16_224",  # any VisionTransformer: model_args give every size
        "num_classes": 0,
        "num_features": encoder.width,
        "global_pool": POOLING,
        "model_args": {
            "img_size": encoder.image_size,
            "patch_size": encoder.patch,
            "in_chans": encoder.channels,
            "embed_dim": encoder.width,
            "depth": encoder.depth,
            "num_heads": encoder.num_heads,
            "mlp_ratio": encoder.mlp_ratio,
            "num_classes": 0,
            "global_pool": POOLING,
            "fc_norm": False,  # else timm would drop the trained norm for a new one behind the pooling
        },
        "pretrained_cfg": {
            "input_size": [encoder.channels, images.image_size, images.image_size],
            "fixed_input_size": True,
            "interpolation": images.interpolation,
            "crop_pct": _CROP,
            "crop_mode": "center",
            "mean": images.mean,
            "std": images.std,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def hf_config(encoder: ViTConfig, head: DecoderConfig, *, mask_ratio: float, normalize: bool) -> dict[str, Any]:
    """Describe a network in the words of transformers' ViTMAEConfig."""
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": int(encoder.width * encoder.mlp_ratio),
        "image_size": encoder.image_size,
        "patch_size": encoder.patch,
        "num_channels": encoder.channels,
        "decoder_hidden_size": head.width,
        "decoder_num_hidden_layers": head.depth,
        "decoder_num_attention_heads": head.num_heads,
        "decoder_intermediate_size": int(head.width * head.mlp_ratio),
        "layer_norm_eps": LAYER_NORM_EPS,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "mask_ratio": mask_ratio,
        "norm_pix_loss": normalize,
    }


def hf_preprocessor(images: Preprocessing) -> dict[str, Any]:
    """Describe what images go through in the words of transformers' ViTImageProcessor, which resizes without a crop."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": images.image_size, "width": images.image_size},
        "resample": Image.Resampling[images.interpolation.upper()].value,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": images.mean,
        "image_std": images.std,
    }

"""Folders that ViTMAEForPreTraining.from_pretrained of transformers takes: encoder and decoder."""

import re
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from bimkern.exporters.autoencoder import Autoencoder, read_autoencoder
from bimkern.exporters.trained import Preprocessing, Trained
from bimkern.exporters.whole_file import write_json, write_weights
from bimkern.models.encoder import WEIGHTS_FILE
from bimkern.models.layers import LAYER_NORM_EPS

_LAYER = {  # parts of a transformer layer, here and there
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.query.": ".attention.attention.query.",
    ".attn.key.": ".attention.attention.key.",
    ".attn.value.": ".attention.attention.value.",
    ".attn.proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
_PARTS = re.compile("|".join(map(re.escape, _LAYER)))


def write_hf(path: Path, trained: Trained, depth: int) -> None:
    """Write such a folder.

    Raises:
        ConfigError: the method is not MAE's at this depth, or the folder cannot be written.
    """
    run = read_autoencoder(trained, depth, "hf-vit-mae")
    write_weights(path / WEIGHTS_FILE, hf_weights(run), trained.metadata(depth))
    write_json(path / "config.json", _config(run))
    write_json(path / "preprocessor_config.json", _preprocessor(trained.preprocessing))


def hf_weights(run: Autoencoder) -> dict[str, Tensor]:
    """Name encoder and decoder as the published ViTMAE checkpoints do.

    Those of its modules differ between releases of transformers, so load with `from_pretrained`: every release maps the
    published names to its own.
    """
    weights = run.encoder_weights | {decoder_name(name): tensor for name, tensor in run.decoder_weights.items()}
    published: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        names = published_names(name)
        # safetensors refuses views of one storage
        parts = [tensor] if len(names) == 1 else [rows.clone() for rows in tensor.chunk(len(names))]
        published |= dict(zip(names, parts, strict=True))
    return published | {"decoder.decoder_pos_embed": run.decoder_positions}


def decoder_name(ours: str) -> str:
    """Return the name of a weight of the decoder, from its name in our head, but for the parts of a layer."""
    if ours.startswith("blocks."):
        return f"decoder.decoder_layers.{ours.removeprefix('blocks.')}"
    return "decoder.mask_token" if ours == "mask_token" else f"decoder.decoder_{ours}"


def published_names(name: str) -> tuple[str, ...]:
    """Return the published names of a weight whose layer is named already.

    A joint projection [3 D, ...] has three: those of query, key and value, [D, ...] each.
    """
    joint = ".attn.qkv." in name
    names = [name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")] if joint else [name]
    return tuple(_PARTS.sub(lambda match: _LAYER[match[0]], part) for part in names)


def _config(run: Autoencoder) -> dict[str, Any]:
    """Describe a network in the words of transformers' ViTMAEConfig."""
    decoder = run.decoder
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        **run.layout.settings,
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.num_heads,
        "decoder_intermediate_size": int(decoder.width * decoder.mlp_ratio),
        "layer_norm_eps": LAYER_NORM_EPS,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "mask_ratio": run.mask_ratio,
        "norm_pix_loss": run.target.normalize,
    }


def _preprocessor(images: Preprocessing) -> dict[str, Any]:
    """Describe what images go through in the words of transformers' ViTImageProcessor, which resizes without a crop."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": images.image_size._asdict(),
        "resample": Image.Resampling[images.interpolation.upper()].value,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": images.mean,
        "image_std": images.std,
    }
